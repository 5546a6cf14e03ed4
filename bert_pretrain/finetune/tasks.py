"""What a fine-tuning task is, and the rows of its splits: from files as published, or from the hub.

A task is one YAML under ``configs/task``: which columns hold texts and label, which labels there are, what is measured,
and the hyper-parameters of its published recipe. GLUE publishes TSV without quoting, SQuAD publishes JSON.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec

from bert_pretrain.errors import ConfigError
from bert_pretrain.finetune.options import PACKED, SourceConfig, TaskConfig

SHORT_ROWS_ALLOWED = 0.01  # the published QQP training set has three in 363,849
Row = dict[str, Any]
Say = Callable[[str], None]


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
