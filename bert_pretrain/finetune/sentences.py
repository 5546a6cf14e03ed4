"""Tasks on single sentences or sentence pairs (GLUE): rows to examples to batches, and predictions to submissions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bert_pretrain.errors import ConfigError
from bert_pretrain.finetune.options import TaskConfig
from bert_pretrain.finetune.tasks import Row


@dataclass(frozen=True)
class Example:
    """One row of a task."""

    texts: tuple[str, ...]
    """One sentence, or two."""
    label: float | None
    """The label id, for a regression the value; None in a test set."""


def read_examples(task: TaskConfig, rows: list[Row], where: str, labelled: bool) -> list[Example]:
    """Convert ``rows`` to examples. Raises ``ConfigError`` for missing columns and unknown labels."""
    if not rows:
        raise ConfigError(f"{where} has no rows")
    published = set(task.columns) <= set(rows[0])
    columns = task.columns if published else task.hub_columns
    label_column = task.label_column if published and task.label_column in rows[0] else "label"
    examples = []
    for number, row in enumerate(rows, 1):
        missing = [name for name in (*columns, *([label_column] if labelled else [])) if row.get(name) is None]
        if missing:
            raise ConfigError(
                f"{where}: row {number} has no {missing[0]!r}, only {', '.join(row)}; "
                f"{task.name} needs {', '.join((*columns, label_column))}"
            )
        label = read_label(task, row[label_column], f"{where}: row {number}") if labelled else None
        examples.append(Example(tuple(str(row[name]) for name in columns), label))
    return examples


def read_label(task: TaskConfig, value: Any, where: str) -> float:
    """The label id of ``value``, a name (files) or an id (hub); for a regression the number itself."""
    if task.label_range is not None:
        low, high = task.label_range
        try:
            number = float(value)
        except (ValueError, TypeError):
            number = np.nan
        if not low <= number <= high:
            raise ConfigError(f"{where} has the label {value!r}; {task.name} has numbers from {low:g} to {high:g}")
        return number
    if isinstance(value, int) and 0 <= value < len(task.labels):
        return value
    if value not in task.labels:
        raise ConfigError(f"{where} has the label {value!r}; {task.name} has {', '.join(task.labels)}")
    return task.labels.index(value)


def make_collate(
    task: TaskConfig, tokenizer: Any, max_length: int
) -> Callable[[list[Example]], dict[str, torch.Tensor]]:
    """A collate function: ids (examples, longest of them), truncated to ``max_length`` from the longer text."""
    label_type = torch.float32 if task.kind == "regression" else torch.int64

    def collate(examples: list[Example]) -> dict[str, torch.Tensor]:
        texts = [list(column) for column in zip(*(example.texts for example in examples), strict=True)]
        encoded = tokenizer(*texts, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
        if examples[0].label is not None:
            encoded["labels"] = torch.tensor([example.label for example in examples], dtype=label_type)
        return dict(encoded)

    return collate


def predicted(task: TaskConfig, logits: np.ndarray) -> np.ndarray:
    """Label ids, or the values of a regression within its range, from logits (examples, labels)."""
    if task.label_range is not None:
        low, high = task.label_range
        return logits[:, 0].astype(np.float64).clip(low, high)
    return logits.argmax(-1)


def submission(task: TaskConfig, predictions: np.ndarray) -> str:
    """GLUE's submission format: a TSV of row number, from 0, and label as the published files spell it."""
    labels = [f"{value:.3f}" if task.kind == "regression" else task.labels[value] for value in predictions]
    return "index\tprediction\n" + "".join(f"{index}\t{label}\n" for index, label in enumerate(labels))
