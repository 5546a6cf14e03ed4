"""The gain from pretraining: one model fine-tuned from pretrained and from random weights, with five seeds each.

    python scripts/prove_scores.py my-bert shared/data work scores.json sst2 mrpc

DATA has ``glue/SST-2``, ``glue/MRPC`` and files in SQuAD's format, as published. ``squad_v1`` trains on squadshifts'
new Wikipedia questions and evaluates on a fixed part of SQuAD 1.1's dev set. ``squad_reviews`` trains on squadshifts'
Amazon reviews and evaluates on the last products. Training sets are truncated, so that a run takes minutes on one core.
Both sides use the same options and learning rate. Results that exist in WORK_DIR are not computed again.
"""

import json
import lzma
import subprocess
import sys
from pathlib import Path
from typing import Any

import repository_root  # noqa: F401  makes bert_pretrain importable
import torch
from results_file import argument_parser, write_result

from bert_pretrain.model.precision import has_bf16

DEV_ARTICLES, DEV_PRODUCTS = 8, 60  # the first of 48, the last of 413
QUESTIONS = ("training.max_train_samples=2000", "training.epochs=3", "training.max_length=128")
TASKS = {
    "sst2": ("accuracy", "3e-4", ("training.max_train_samples=20000", "training.epochs=2")),
    "mrpc": ("accuracy", "3e-4", ("training.epochs=3",)),
    "squad_v1": ("f1", "5e-4", QUESTIONS),
    "squad_reviews": ("f1", "5e-4", QUESTIONS),
}
"""The metric to compare, the learning rate of both sides, and other options."""


def read(path: Path) -> list[dict[str, Any]]:
    """The articles of a file in SQuAD's format."""
    with lzma.open(path) as file:
        articles: list[dict[str, Any]] = json.load(file)["data"]
    return articles


def written(articles: list[dict[str, Any]], path: Path) -> Path:
    """Write ``articles`` to ``path``; return it."""
    path.write_text(json.dumps({"data": articles}), encoding="utf-8")
    return path


def source(task: str, data: Path, work: Path) -> list[str]:
    """Options of ``bert-pretrain finetune``: the task and its data."""
    if task == "squad_v1":
        train = data / "squad/squadshifts_new_wiki_v1.0.json.xz"
        whole = read(data / "squad/dev-v1.1.rebuilt.json.xz")[:DEV_ARTICLES]
        some = [{**article, "paragraphs": article["paragraphs"][::4]} for article in whole]
        return ["task=squad_v1", f"data.train_file={train}", f"data.dev_file={written(some, work / 'dev.json')}"]
    if task == "squad_reviews":
        products = read(data / "squad/squadshifts_amazon_reviews_v1.0.json.xz")
        train = written(products[:-DEV_PRODUCTS], work / "reviews_train.json")
        dev = written(products[-DEV_PRODUCTS:], work / "reviews_dev.json")
        return ["task=squad_v1", f"data.train_file={train}", f"data.dev_file={dev}"]
    return [f"task={task}", f"data.dir={data / 'glue' / {'sst2': 'SST-2', 'mrpc': 'MRPC'}[task]}"]


def results(task: str, scratch: bool, model: str, data: Path, work: Path) -> dict[str, Any]:
    """The results of one side, computed unless they exist."""
    out_dir = work / f"{task}_{'scratch' if scratch else 'pretrained'}"
    _, lr, more = TASKS[task]
    if not (out_dir / "results.json").exists():
        options = [f"model_dir={model}", f"from_scratch={str(scratch).lower()}", f"out_dir={out_dir}"]
        options += [*source(task, data, work), *more, f"training.lr={lr}", "training.batch_size=32"]
        options.append(f"training.precision={'bf16' if has_bf16(torch.device('cpu')) else 'fp32'}")
        subprocess.run([sys.executable, "-m", "bert_pretrain.finetune", *options], check=True)
    return json.loads((out_dir / "results.json").read_text(encoding="utf-8"))


def row(task: str, model: str, data: Path, work: Path) -> dict[str, Any]:
    """One line of the table: both sides."""
    metric, lr, _ = TASKS[task]
    found: dict[str, Any] = {"task": task, "metric": metric, "learning rate": lr}
    for side in ("pretrained", "scratch"):
        run = results(task, side == "scratch", model, data, work)
        found |= {f"{side}, {of}": run[of][metric] for of in ("median", "least", "greatest")}
    return found | {"gain": found["pretrained, median"] - found["scratch, median"]}


def main() -> None:
    """Compute what is missing and write the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("model", help="folder of the pretrained model")
    parser.add_argument("data", type=Path)
    parser.add_argument("work_dir", type=Path)
    parser.add_argument("result", type=Path, help="JSON file to write")
    parser.add_argument("tasks", nargs="*", metavar="task", help=f"some of {', '.join(TASKS)}; default: all")
    given = parser.parse_args()
    tasks = given.tasks or list(TASKS)
    if unknown := set(tasks) - TASKS.keys():
        parser.error(f"unknown tasks {', '.join(unknown)}; allowed: {', '.join(TASKS)}")
    given.work_dir.mkdir(parents=True, exist_ok=True)
    rows = [row(task, given.model, given.data, given.work_dir) for task in tasks]
    note = "In percent, over five seeds. " + "; ".join(f"{task}: {' '.join(TASKS[task][2])}" for task in tasks)
    write_result(given.result, "Gain from pretraining: one model from pretrained and from random weights", rows, note)


if __name__ == "__main__":
    main()
