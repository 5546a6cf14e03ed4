"""What a fine-tuning task is, and the rows of its splits: from files as published, or from the hub.

A task is one YAML under ``configs/task``: which columns hold texts and label, which labels there are, what is measured,
and the hyper-parameters of its published recipe. GLUE publishes TSV without quoting, SQuAD publishes JSON.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from bert_pretrain.errors import ConfigError, require

PACKED = ("", ".gz", ".bz2", ".xz", ".zst")
SHORT_ROWS_ALLOWED = 0.01  # the published QQP training set has three in 363,849
Row = dict[str, Any]
Say = Callable[[str], None]


@dataclass
class SplitConfig:
    """One set of examples of a task."""

    file: str
    """Its published file name, looked for in ``data_dir``, packed or not."""
    hub: str | None
    """Its name on the hub; null where the hub does not have it."""
    predictions: str
    """The file name under which predictions for it are submitted."""


@dataclass
class AnswerConfig:
    """How questions are put to the model, and answers read from it."""

    unanswerable: bool
    """Questions without an answer are allowed, and scored (SQuAD 2.0)."""
    max_query_length: int
    """Tokens after which a question is cut."""
    doc_stride: int
    """Tokens between the starts of two windows of one context."""
    max_answer_length: int
    """Tokens of an answer, at most."""
    n_best: int
    """Starts and ends of each window that are combined."""
    null_threshold: float
    """No answer where its score exceeds the best answer's by more than this."""


@dataclass
class TaskConfig:
    """A task: its data as published, and how it is scored."""

    name: str
    """Its name in files and tables."""
    kind: str
    """classification, regression or squad."""
    hub: str
    """The data set's name on the hub."""
    hub_subset: str | None
    """Its part there."""
    splits: dict[str, SplitConfig]
    """train; dev, and further sets to evaluate, which begin with dev; test sets, which begin with test."""
    columns: list[str]
    """The one or two columns of text in the published files."""
    label_column: str
    """The column of the label in the published files."""
    no_header: list[str] | None
    """All columns of files that are published without a header line; null where they have one."""
    hub_columns: list[str]
    """The columns of text on the hub, whose label is always ``label``."""
    labels: list[str]
    """The labels as the published files spell them, in the order of the hub's numbers; none for regression."""
    label_range: list[float] | None
    """Least and largest label of a regression."""
    metrics: list[str]
    """What is measured; the first is the task's own."""
    answers: AnswerConfig | None
    """Only for kind squad."""

    def __post_init__(self) -> None:
        kinds = ("classification", "regression", "squad")
        require(self.kind in kinds, "task.kind", self.kind, ", ".join(kinds))
        require({"train", "dev"} <= set(self.splits), "task.splits", sorted(self.splits), "train, dev and others")
        allowed = "two or more" if self.kind == "classification" else "none"
        require((len(self.labels) > 1) == (self.kind == "classification"), "task.labels", self.labels, allowed)
        require((self.answers is not None) == (self.kind == "squad"), "task.answers", self.answers, "for kind squad")
        require((self.label_range is not None) == (self.kind == "regression"), "task.label_range", self.label_range, "")


@dataclass
class SourceConfig:
    """Where the data is. Nothing given: the hub."""

    dir: str | None
    """A folder with the task's files under their published names."""
    train_file: str | None
    """This file for training, whatever its name."""
    dev_file: str | None
    """This file for evaluation."""
    test_file: str | None
    """This file for predictions without labels."""

    def file(self, split: str, name: str) -> Path | None:
        """The file of ``split``, published as ``name``; None where files do not hold it."""
        given = {"train": self.train_file, "dev": self.dev_file, "test": self.test_file}.get(split)
        if given is not None:
            return existing(Path(given), f"data.{split}_file")
        if self.dir is None:
            return None
        found = [Path(self.dir, name + ending) for ending in PACKED]
        return next((path for path in found if path.is_file()), None)

    @property
    def is_hub(self) -> bool:
        """True where no file is named."""
        return not any((self.dir, self.train_file, self.dev_file, self.test_file))


def existing(path: Path, option: str) -> Path:
    """``path``, if it is a file."""
    if not path.is_file():
        raise ConfigError(f"{option} is {str(path)!r}, which is no file; give one that exists")
    return path


def read_split(task: TaskConfig, source: SourceConfig, split: str, say: Say) -> tuple[list[Row], str] | None:
    """The rows of one split and the name of where they are from; None where an optional split is not there.

    ``train`` and ``dev`` have to be there. With ``data.dev_file``, further dev sets are optional, too.
    """
    where = task.splits[split]
    if source.is_hub:
        return None if where.hub is None else (hub_rows(task, where.hub), f"{task.hub} {where.hub}")
    path = source.file(split, where.file)
    if path is not None:
        return read_file(task, path, split, say), str(path)
    if split in ("train", "dev") or (split.startswith("dev") and source.dev_file is None):
        option = f"data.{split}_file" if split in ("train", "dev") else "data.dir"
        raise ConfigError(
            f"data.dir is {source.dir!r}, and holds no {where.file} (packed: {', '.join(PACKED[1:])}); "
            f"give the folder of {task.name} as published, or {option}"
        )
    return None


def hub_rows(task: TaskConfig, split: str) -> list[Row]:
    """The rows of one split as the hub has them."""
    import datasets  # more than a second that only its users pay

    try:
        return list(datasets.load_dataset(task.hub, task.hub_subset, split=split))
    except Exception as error:  # the library and the network raise whatever they like
        raise ConfigError(
            f"task.hub {task.hub} ({task.hub_subset}, {split}) cannot be loaded from the hub "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); "
            "check the network, or give files with data.dir"
        ) from None


def read_file(task: TaskConfig, path: Path, split: str, say: Say) -> list[Row]:
    """The rows of a published file: SQuAD's JSON, TSV, or JSON lines."""
    try:
        with fsspec.open(str(path), "rt", encoding="utf-8-sig", newline="\n", compression="infer") as file:
            if task.kind == "squad":
                return list(squad_rows(file.read(), path))
            if ".jsonl" in path.suffixes:
                return list(json_rows(file, path))
            return tsv_rows(file, task, path, split, say)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__}: {error}); give a UTF-8 file") from None


def json_rows(lines: Iterable[str], path: Path) -> Iterator[Row]:
    """A JSON object a line."""
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path} line {number} is not JSON ({error})") from None
        if not isinstance(row, dict):
            raise ConfigError(f"{path} line {number} is {line[:40]!r}; allowed: a JSON object")
        yield row


def tsv_rows(lines: Iterable[str], task: TaskConfig, path: Path, split: str, say: Say) -> list[Row]:
    """Rows of a TSV file without quoting, whose first line names the columns unless the task says otherwise.

    A training set may have a few rows with too few columns, as QQP's has: they are left out, and counted aloud.
    """
    cells = [line.rstrip("\r\n").split("\t") for line in lines]
    needed = set(task.columns) | (set() if split.startswith("test") else {task.label_column})
    if not cells:
        raise ConfigError(f"{path} is empty")
    named = needed <= set(cells[0])
    if not named and (task.no_header is None or len(cells[0]) != len(task.no_header)):
        raise ConfigError(
            f"{path} has the columns {', '.join(cells[0])[:200]}; {task.name} needs {', '.join(sorted(needed))}: "
            "give the file as GLUE publishes it"
        )
    header, first = (cells[0], 1) if named else (task.no_header or [], 0)
    short = [number for number, row in enumerate(cells[first:], first + 1) if len(row) < len(header)]
    if short and (split != "train" or len(short) > SHORT_ROWS_ALLOWED * len(cells)):
        found = len(cells[short[0] - 1])
        raise ConfigError(f"{path} line {short[0]} has {found} columns; allowed: {len(header)}, divided by tabs")
    if short:
        say(f"{path}: {len(short)} rows with too few columns are left out, the first in line {short[0]}")
    return [dict(zip(header, row, strict=False)) for row in cells[first:] if len(row) >= len(header)]


def squad_rows(text: str, path: Path) -> Iterator[Row]:
    """The questions of SQuAD's JSON, each as the hub has it: id, context, question, answers; is_impossible if said."""
    try:
        articles = json.loads(text)["data"]
        for article in articles:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    yield {"answers": []} | question | {"context": paragraph["context"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is not SQuAD's JSON, data[].paragraphs[].qas[] ({type(error).__name__}: {error})"
        ) from None
