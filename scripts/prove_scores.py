"""What pretraining is worth: the same model fine-tuned from its pretrained and from random weights, five seeds each.

    python scripts/prove_scores.py MODEL DATA WORK_DIR [RESULT.json]

``DATA`` holds ``glue/SST-2``, ``glue/MRPC`` and SQuAD-format files as published (squadshifts' to train on, a fixed part
of SQuAD 1.1's development set to evaluate). Training sets are cut, so that a run takes minutes on one core. Both sides
have the same options; each is shown at its better learning rate. Results that stand in ``WORK_DIR`` are used again.
"""

import json
import lzma
import subprocess
import sys
from pathlib import Path
from typing import Any

from results_file import write_result

LEARNING_RATES = ("3e-4", "1e-3", "3e-3")
DEV_ARTICLES = 8  # the first of 48
TASKS = {
    "sst2": ("accuracy", ("training.max_train_samples=2000", "training.epochs=4")),
    "mrpc": ("f1", ("training.max_train_samples=2000", "training.epochs=3")),
    "squad_v1": ("f1", ("training.max_train_samples=1500", "training.epochs=2", "training.max_length=128")),
}


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


def results(task: str, scratch: bool, lr: str, model: str, data: Path, work: Path) -> dict[str, Any]:
    """The results of one side at one learning rate, computed where they are not there yet."""
    out_dir = work / f"{task}_{'scratch' if scratch else 'pretrained'}_{lr}"
    if not (out_dir / "results.json").exists():
        options = [f"task={task}", f"model_dir={model}", f"from_scratch={str(scratch).lower()}", f"out_dir={out_dir}"]
        options += [*source(task, data, work), *TASKS[task][1], f"training.lr={lr}", "training.batch_size=32"]
        subprocess.run([sys.executable, "-m", "bert_pretrain.finetune", *options], check=True)
    return json.loads((out_dir / "results.json").read_text(encoding="utf-8"))


def row(task: str, model: str, data: Path, work: Path) -> dict[str, Any]:
    """One line of the table: both sides at their best learning rates."""
    metric = TASKS[task][0]
    found: dict[str, Any] = {"task": task, "metric": metric, "options": " ".join(TASKS[task][1])}
    for side in ("pretrained", "scratch"):
        runs = {lr: results(task, side == "scratch", lr, model, data, work) for lr in LEARNING_RATES}
        lr, best = max(runs.items(), key=lambda item: item[1]["median"][metric])
        found |= {f"{side}, median": best["median"][metric], "lr" if side == "pretrained" else "its lr": lr}
        found |= {f"{side}, least": best["least"][metric], f"{side}, greatest": best["greatest"][metric]}
    return found | {"gain": found["pretrained, median"] - found["scratch, median"]}


def main() -> None:
    """Compute what is missing and write the table."""
    model, data, work = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    work.mkdir(parents=True, exist_ok=True)
    rows = [row(task, model, data, work) for task in TASKS]
    if len(sys.argv) > 4:
        note = "Medians over five seeds, in percent, each side at its better learning rate of " + ", ".join(
            LEARNING_RATES
        )
        write_result(Path(sys.argv[4]), "What pretraining is worth", rows, note)


if __name__ == "__main__":
    main()
