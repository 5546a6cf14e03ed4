"""CPU time from sentences to shards: our data preparation, by stage, and NVIDIA's published script.

    python scripts/bench_data.py TEXT VOCAB PUBLISHED_DIR RESULT.json [ROUNDS]

TEXT has a sentence a line and a blank line between documents. PUBLISHED_DIR has ``create_pretraining_data.py`` of
NVIDIA's DeepLearningExamples (PyTorch/LanguageModeling/BERT), unchanged, and the modules that it imports. Both do the
same work alternately on one core, start-up included, ours with one worker: no cleaning, no search for duplicates, the
given vocabulary. All that our command does by default is measured beside: cleaning, sentences, duplicates, a tokenizer
of its own. The published script imports torch without using it, so its start-up is also measured with and without
torch. Bytecode and compiled functions are cached before, as they are from the second use of an installation on.
"""

import json
import os
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
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
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


def same_work(vocab: Path) -> list[str]:
    """The options with which our command does what the published script does."""
    options = ["corpus.lines=sentence", "cleaning@corpus.cleaning=off", "duplicates.exact=false"]
    return [*options, "duplicates.near=false", "heldout_fraction=0", f"vocab={vocab}"]


def ours(text: Path, out: Path, options: list[str]) -> tuple[float, dict[str, float]]:
    """CPU seconds of our command on the same text, in all and by stage."""
    options = [*options, "corpus=text", f"corpus.path={text}", f"out_dir={out}", "engine.workers=1"]
    options += [f"sequence_lengths=[{LENGTH}]", f"max_predictions=[{PREDICTIONS}]", f"dupe_factor={DUPLICATES}"]
    seconds = child_seconds([sys.executable, "-c", _PREPARE, *options], ROOT)
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
        "the tokenizers library": timed(lambda part: encode_batch(vocabulary, part)),
        "ours": timed(lambda part: encoder.encode(("\n".join(part) + "\n").encode())),
    }


def measure_round(text: Path, vocab: Path, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """CPU seconds by what was measured, and those of the stages of our command by name."""
    seconds: dict[str, float] = {}
    stages: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        seconds["published script, all of it"] = published(text, vocab, folder, out)
        seconds["published script, its start-up"] = start_up(folder, torch=True)
        seconds["published script, its start-up without torch"] = start_up(folder, torch=False)
        seconds["ours, all of it"], same = ours(text, out / "same", same_work(vocab))
        seconds["ours with all that it does by default"], default = ours(text, out / "default", [])
    for what, of_run in (("ours", same), ("by default", default)):
        stages |= {f"{what}, stage {name}": value for name, value in of_run.items()}
    seconds |= {f"encoding alone: {name}": value for name, value in encoding(text, vocab).items()}
    return seconds, stages


def main() -> None:
    """Measure alternately, print the medians and write them to the result file."""
    text, vocab, folder, result = (Path(argument).absolute() for argument in sys.argv[1:5])
    rounds = int(sys.argv[5]) if len(sys.argv) > 5 else 3
    megabytes = text.stat().st_size / 1e6
    with tempfile.TemporaryDirectory() as scratch:
        warm = Path(scratch) / "warm.txt"
        warm.write_text("\n\n".join(text.read_text(encoding="utf-8").split("\n\n")[:20]), encoding="utf-8")
        ours(warm, Path(scratch) / "out", same_work(vocab))
        start_up(folder, torch=True)
    found = [measure_round(text, vocab, folder) for _ in range(rounds)]
    seconds, stages = (
        {name: statistics.median(of_round[name] for of_round in part) for name in part[0]}
        for part in zip(*found, strict=True)
    )
    rows: list[dict[str, Any]] = [
        {"what": name, "processor s": value, "MB/s": round(megabytes / max(1e-3, value), 2)}
        for name, value in {**seconds, **stages}.items()
    ]
    what = f"Sentences to shards, {megabytes:.1f} MB, factor {DUPLICATES}, one core, beside the published script"
    whole, mine = seconds["published script, all of it"], seconds["ours, all of it"]
    torch = seconds["published script, its start-up"] - seconds["published script, its start-up without torch"]
    ratios = [one["published script, all of it"] / one["ours, all of it"] for one, _ in found]
    default = whole / seconds["ours with all that it does by default"]
    writing = stages["ours, stage samples"] + stages[f"ours, stage shards {LENGTH}"]
    writing /= seconds["encoding alone: the tokenizers library"]
    write_result(
        result,
        what,
        rows,
        f"Medians of {rounds} alternating rounds. Published over ours: {whole / mine:.2f} "
        f"(by round: {', '.join(f'{ratio:.2f}' for ratio in ratios)}); without its import of torch "
        f"{(whole - torch) / mine:.2f}; with all that ours does by default {default:.2f}. Samples and shards over the "
        f"library's encoding: {writing:.2f}.",
    )


if __name__ == "__main__":
    main()
