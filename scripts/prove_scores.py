"""What pretraining is worth: the same model fine-tuned from its pretrained and from random weights, five seeds each.

    python scripts/prove_scores.py MODEL DATA WORK_DIR RESULT.json [TASK...]

``DATA`` holds ``glue/SST-2``, ``glue/MRPC`` and files in SQuAD's format, as published: for ``squad_v1`` the new
questions on Wikipedia of squadshifts to train on and a fixed part of SQuAD 1.1's development set to evaluate; for
``squad_reviews`` its questions on reviews, those on the last products to evaluate. Training sets are cut, so that a
run takes minutes on one core. Both sides have the same options and learning rates. Stopped, it goes on with the runs
that ``WORK_DIR`` does not hold.
"""

import json
import lzma
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from results_file import write_result

from bert_pretrain.model.precision import compute_dtype

DEV_ARTICLES, DEV_PRODUCTS = 8, 60  # the first of 48, the last of 413
QUESTIONS = ("training.max_train_samples=2000", "training.epochs=3", "training.max_length=128")
TASKS = {
    "sst2": ("accuracy", "3e-4", ("training.max_train_samples=20000", "training.epochs=2")),
    "mrpc": ("accuracy", "3e-4", ("training.epochs=3",)),
    "squad_v1": ("f1", "5e-4", QUESTIONS),
    "squad_reviews": ("f1", "5e-4", QUESTIONS),
}
"""The metric that is compared, the learning rate of both sides, and other options."""


def read(path: Path) -> list[dict[str, Any]]:
    """The articles of a file in SQuAD's format."""
    with lzma.open(path) as file:
        articles: list[dict[str, Any]] = json.load(file)["data"]
    return articles


def written(articles: list[dict[str, Any]], path: Path) -> Path:
    """The file that holds ``articles``."""
    path.write_text(json.dumps({"data": articles}), encoding="utf-8")
    return path


def source(task: str, data: Path, work: Path) -> list[str]:
    """The task for ``bert_pretrain.finetune``, and where its data are."""
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
    """The results of one side, computed where they are not there yet."""
    out_dir = work / f"{task}_{'scratch' if scratch else 'pretrained'}"
    _, lr, more = TASKS[task]
    if not (out_dir / "results.json").exists():
        options = [f"model_dir={model}", f"from_scratch={str(scratch).lower()}", f"out_dir={out_dir}"]
        options += [*source(task, data, work), *more, f"training.lr={lr}", "training.batch_size=32"]
        options.append(f"training.precision={'bf16' if has_bf16() else 'fp32'}")
        subprocess.run([sys.executable, "-m", "bert_pretrain.finetune", *options], check=True)
    return json.loads((out_dir / "results.json").read_text(encoding="utf-8"))


def has_bf16() -> bool:
    """Whether this processor has instructions for it."""
    return compute_dtype("auto", torch.device("cpu")) == torch.bfloat16


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
    model, data, work, result = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
    work.mkdir(parents=True, exist_ok=True)
    tasks = sys.argv[5:] or list(TASKS)
    rows = [row(task, model, data, work) for task in tasks]
    note = "In percent, over five seeds. " + "; ".join(f"{task}: {' '.join(TASKS[task][2])}" for task in tasks)
    write_result(result, "What pretraining is worth: one model from pretrained and from random weights", rows, note)


if __name__ == "__main__":
    main()
