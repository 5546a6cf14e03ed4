"""CPU time from sentences to shards: our data preparation, by stage, and NVIDIA's published script.

    python scripts/bench_data.py TEXT VOCAB PUBLISHED_DIR RESULT.json [ROUNDS]

TEXT has a sentence a line and a blank line between documents. PUBLISHED_DIR has ``create_pretraining_data.py`` of
NVIDIA's DeepLearningExamples (PyTorch/LanguageModeling/BERT), unchanged, and the modules that it imports. Both run
alternately on one core, start-up included, ours with one worker. The published script imports torch without using it,
so its start-up is also measured with and without torch.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from results_file import write_result

from data_prep.samples.tokenizer import encode_batch, load_vocabulary
from data_prep.samples.words import WordEncoder

ROOT = Path(__file__).resolve().parent.parent
LENGTH, PREDICTIONS, DUPLICATES = 128, 20, 5
# With one worker the stages run in the command's process, so their times can be CPU times.
_PREPARE = "import time; time.perf_counter = time.process_time; from data_prep.prepare import main; main()"


def child_seconds(command: list[str], folder: Path) -> float:
    """CPU seconds, user and system, of a command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def published(text: Path, vocab: Path, folder: Path, out: Path) -> float:
    """CPU seconds of the published script on the whole text."""
    shape = [f"--max_seq_length={LENGTH}", f"--max_predictions_per_seq={PREDICTIONS}", f"--dupe_factor={DUPLICATES}"]
    files = [f"--vocab_file={vocab}", f"--input_file={text}", f"--output_file={out / 'published.hdf5'}"]
    return child_seconds([sys.executable, "create_pretraining_data.py", *files, *shape, "--do_lower_case"], folder)


def start_up(folder: Path, torch: bool) -> float:
    """CPU seconds of the published script with --help; it imports no torch if ``USE_TORCH`` is 0."""
    switch = [] if torch else ["env", "USE_TORCH=0"]
    return child_seconds([*switch, sys.executable, "create_pretraining_data.py", "--help"], folder)


def ours(text: Path, vocab: Path, out: Path, dupe_factor: int) -> tuple[float, dict[str, float]]:
    """CPU seconds of our command on the same sentences, in all and by stage."""
    options = ["corpus=text", f"corpus.path={text}", "corpus.lines=sentence", "cleaning@corpus.cleaning=off"]
    options += ["duplicates.exact=false", "duplicates.near=false", "heldout_fraction=0", "engine.workers=1"]
    options += [f"vocab={vocab}", f"out_dir={out}", f"sequence_lengths=[{LENGTH}]", f"max_predictions=[{PREDICTIONS}]"]
    command = [sys.executable, "-c", _PREPARE, *options, f"dupe_factor={dupe_factor}"]
    seconds = child_seconds(command, ROOT)
    stages = json.loads((out / "manifest.json").read_text())["stages"]
    return seconds, {stage["stage"]: stage["seconds"] for stage in stages}


def encoding(text: Path, vocab: Path) -> dict[str, float]:
    """CPU seconds of encoding alone, by the library in one thread and by ``WordEncoder``, both with a cold cache."""
    vocabulary = load_vocabulary(vocab, True)
    documents = text.read_text(encoding="utf-8").split("\n\n")[:-1]
    sentences = [sentence for document in documents for sentence in document.split("\n")]

    def timed(encode: Callable[[list[str]], Any]) -> float:
        start = time.process_time()
        for first in range(0, len(sentences), 20_000):
            encode(sentences[first : first + 20_000])
        return time.process_time() - start

    encoder = WordEncoder(vocabulary)
    return {
        "library": timed(lambda part: encode_batch(vocabulary, part)),
        "words": timed(lambda part: encoder.encode(("\n".join(part) + "\n").encode())),
    }


def main() -> None:
    """Measure alternately, print the medians and write them to the result file."""
    text, vocab, folder, result = (Path(argument).absolute() for argument in sys.argv[1:5])
    rounds = int(sys.argv[5]) if len(sys.argv) > 5 else 3
    megabytes = text.stat().st_size / 1e6
    names = ("published", "start-up", "start-up without torch", "ours", "library", "words")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    stages: dict[str, list[float]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as scratch:
            seconds["published"].append(published(text, vocab, folder, Path(scratch)))
            total, of_stages = ours(text, vocab, Path(scratch) / "ours", DUPLICATES)
        seconds["ours"].append(total)
        seconds["start-up"].append(start_up(folder, torch=True))
        seconds["start-up without torch"].append(start_up(folder, torch=False))
        for name, value in encoding(text, vocab).items():
            seconds[name].append(value)
        for name, value in of_stages.items():
            stages.setdefault(name, []).append(value)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows: list[dict[str, Any]] = [
        {"what": "published script, all of it", "processor s": medians["published"]},
        {"what": "published script, its start-up", "processor s": medians["start-up"]},
        {"what": "published script, its start-up without torch", "processor s": medians["start-up without torch"]},
        {"what": "ours, all of it", "processor s": medians["ours"]},
        {"what": "encoding alone: the tokenizers library", "processor s": medians["library"]},
        {"what": "encoding alone: ours", "processor s": medians["words"]},
    ]
    rows += [{"what": f"ours, stage {name}", "processor s": statistics.median(v)} for name, v in stages.items()]
    for row in rows:
        row["MB/s"] = round(megabytes / max(1e-3, float(row["processor s"])), 2)
    what = f"Sentences to shards, {megabytes:.1f} MB, factor {DUPLICATES}, one core, beside the published script"
    writing = statistics.median(stages["samples"]) + statistics.median(stages[f"shards {LENGTH}"])
    lean = medians["published"] - medians["start-up"] + medians["start-up without torch"]
    note = (
        f"Medians of {rounds} alternating rounds. Published over ours: {medians['published'] / medians['ours']:.2f}, "
    )
    note += f"without its import of torch: {lean / medians['ours']:.2f}. "
    note += f"Samples and shards over the library's encoding: {writing / medians['library']:.2f}."
    write_result(result, what, rows, note)


if __name__ == "__main__":
    main()
