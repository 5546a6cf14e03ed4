"""Continued pretraining of a real model on a domain, and what it is worth after fine-tuning.

    python scripts/study_domain.py MODEL DATA WORK_DIR RESULT.json

MODEL is a folder of a pretrained BERT, DATA has ``books``, ``wiki``, ``glue`` and ``squad``. Each unit of work (the
shards of a corpus, a run, a fine-tuning with one seed) is kept in WORK_DIR and not computed again, so that the script
may be stopped at any time; RESULT is written after each unit from what is there.

Plan. Fine-tuning is counted by tokens: a 6-layer model of width 384 trains on about 1,600 tokens a second and core in
bf16. Four tasks with one seed take about 10 minutes of a core, so the order is: seed 1 of every model, then seed 2,
then seed 3. Training sets are truncated to random subsets, the same for every model.
"""

import json
import lzma
import subprocess
import sys
from pathlib import Path

from results_file import argument_parser

SEEDS = (1, 2, 3)
DEV_ARTICLES, DEV_STRIDE = 8, 8  # SQuAD's dev set: every eighth paragraph of the first 8 of 48 articles
TASKS = {
    "sst2": ("accuracy", ("training.max_train_samples=5000", "training.epochs=1", "training.lr=1e-4")),
    "mrpc": (
        "f1",
        (
            "training.max_train_samples=2000",
            "training.epochs=2",
            "training.lr=1e-4",
            "training.max_length=96",
            "training.batch_size=16",
        ),
    ),
    "squad": (
        "f1",
        (
            "training.max_train_samples=2000",
            "training.epochs=1",
            "training.lr=3e-4",
            "training.batch_size=16",
            "training.max_length=160",
            "task.answers.doc_stride=64",
        ),
    ),
    "rte": (
        "accuracy",
        (
            "training.max_train_samples=1200",
            "training.epochs=2",
            "training.lr=1e-4",
            "training.max_length=96",
            "training.batch_size=16",
        ),
    ),
}
"""The metric and the options of each task, the most telling first."""
FOLDERS = {"sst2": "SST-2", "mrpc": "MRPC", "rte": "RTE"}


def source(task: str, data: Path, work: Path) -> list[str]:
    """Options of ``bert-pretrain finetune``: the task and its data."""
    if task != "squad":
        return [f"task={task}", f"data.dir={data / 'glue' / FOLDERS[task]}"]
    dev = work / "squad_dev.json"
    if not dev.exists():
        with lzma.open(data / "squad/dev-v1.1.rebuilt.json.xz") as file:
            articles = json.load(file)["data"][:DEV_ARTICLES]
        some = [{**article, "paragraphs": article["paragraphs"][::DEV_STRIDE]} for article in articles]
        dev.write_text(json.dumps({"data": some}), encoding="utf-8")
    train = data / "squad/squadshifts_new_wiki_v1.0.json.xz"
    return ["task=squad_v1", f"data.train_file={train}", f"data.dev_file={dev}"]


def finetune(name: str, model: Path, task: str, seed: int, data: Path, work: Path) -> None:
    """Fine-tune ``model`` once; ``name`` random means: its shape with random weights."""
    out_dir = work / "finetune" / f"{name}_{task}_{seed}"
    if (out_dir / "results.json").exists():
        return
    options = [f"model_dir={model}", f"from_scratch={str(name == 'random').lower()}", f"seeds=[{seed}]"]
    options += [*source(task, data, work), *TASKS[task][1], "training.precision=bf16", f"out_dir={out_dir}"]
    subprocess.run([sys.executable, "-m", "bert_pretrain.finetune", *options], check=True)


def main() -> None:
    """Compute what is missing."""
    parser = argument_parser(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("work_dir", type=Path)
    parser.add_argument("result", type=Path)
    given = parser.parse_args()
    given.work_dir.mkdir(parents=True, exist_ok=True)
    for seed in SEEDS:
        for task in TASKS:
            for name in ("original", "random"):
                finetune(name, given.model, task, seed, given.data, given.work_dir)


if __name__ == "__main__":
    main()
