"""What pretraining is worth: the same model fine-tuned from its pretrained and from random weights, five seeds each.

    python scripts/prove_scores.py MODEL DATA WORK_DIR RESULT.json [TASK...]

``DATA`` holds ``glue/SST-2``, ``glue/MRPC`` and SQuAD-format files as published (squadshifts' to train on, a fixed part
of SQuAD 1.1's development set to evaluate). Training sets are cut, so that a run takes minutes on one core. Both sides
have the same options and learning rates. Stopped, it goes on with the runs that ``WORK_DIR`` does not hold.
"""

import json
import lzma
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from results_file import write_result

from bert_pretrain.precision import compute_dtype

DEV_ARTICLES = 8  # the first of 48
TASKS = {
    "sst2": ("accuracy", "3e-4", ("training.max_train_samples=20000", "training.epochs=2")),
    "mrpc": ("accuracy", "3e-4", ("training.epochs=3",)),
    "squad_v1": ("f1", "5e-4", ("training.max_train_samples=2000", "training.epochs=3", "training.max_length=128")),
}
"""The metric that is compared, the learning rate of both sides, and other options."""


def cut_dev_set(data: Path, work: Path) -> Path:
    """The first articles of SQuAD 1.1's development set, every fourth paragraph."""
    path = work / "dev.json"
    with lzma.open(data / "squad/dev-v1.1.rebuilt.json.xz") as file:
        whole = json.load(file)
    articles = [{**article, "paragraphs": article["paragraphs"][::4]} for article in whole["data"][:DEV_ARTICLES]]
    path.write_text(json.dumps({"data": articles}), encoding="utf-8")
    return path


def source(task: str, data: Path, work: Path) -> list[str]:
    """Where the data of a task is."""
    if task == "squad_v1":
        train = data / "squad/squadshifts_new_wiki_v1.0.json.xz"
        return [f"data.train_file={train}", f"data.dev_file={cut_dev_set(data, work)}"]
    return [f"data.dir={data / 'glue' / {'sst2': 'SST-2', 'mrpc': 'MRPC'}[task]}"]


def results(task: str, scratch: bool, model: str, data: Path, work: Path) -> dict[str, Any]:
    """The results of one side, computed where they are not there yet."""
    out_dir = work / f"{task}_{'scratch' if scratch else 'pretrained'}"
    _, lr, more = TASKS[task]
    if not (out_dir / "results.json").exists():
        options = [f"task={task}", f"model_dir={model}", f"from_scratch={str(scratch).lower()}", f"out_dir={out_dir}"]
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
