"""Reads the rows of a task's splits from published files or from the hub.

A task is one YAML under ``configs/task``: its text and label columns, its labels, its metrics, and the published
hyper-parameters. GLUE is published as TSV without quoting, SQuAD as JSON, tagged words in CoNLL's columns.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec

from bert_pretrain.errors import ConfigError, with_type
from bert_pretrain.files.hub_download import be_quiet, hub_reason
from bert_pretrain.finetune.options import COMPRESSIONS, SourceConfig, SplitConfig, TaskConfig

MAX_SHORT_ROWS = 0.01  # share of a training set; the published QQP has 3 in 363,849
Row = dict[str, Any]
TAG = re.compile(r"O|[BIESLU]-.+")
"""Outside of any entity; or its beginning, inside, end (E, L), or all of it (S, U), and a type."""
ALLOWED = "O, or B-, I-, E-, S-, L-, U- and a type"
Log = Callable[[str], None]


def read_split(task: TaskConfig, source: SourceConfig, split: str, log: Log) -> tuple[list[Row], str] | None:
    """The rows of one split, and a name for their origin; None if the split is optional and absent.

    ``train`` and ``dev`` are required. Further dev sets are optional if ``data.dev_file`` is given.
    """
    names = task.splits[split]
    if source.is_hub:
        return None if names.hub is None else (hub_rows(task, names), f"{task.hub} {names.hub}")
    path = source.file(split, names.file)
    train = source.file("train", task.splits["train"].file)
    if split != "train" and path is not None and train is not None and path.samefile(train):
        raise ConfigError(f"{path} is the training file and the {split} set; give data another file for one of them")
    if path is not None:
        return read_file(task, path, split, log), str(path)
    if split in ("train", "dev") or (split.startswith("dev") and source.dev_file is None):
        option = f"data.{split}_file" if split in ("train", "dev") else "data.dir"
        raise ConfigError(
            f"data.dir is {source.dir!r}, and holds no {names.file} (or with {', '.join(COMPRESSIONS[1:])}); "
            f"give the directory of {task.name} as published, or {option}"
        )
    log(f"{task.name}: no {names.file.replace('|', ' or ')} in data.dir, so no {names.predictions} for {split}")
    return None


def hub_rows(task: TaskConfig, split: SplitConfig) -> list[Row]:
    """The rows of one split on the hub."""
    import datasets  # takes more than a second to import

    be_quiet()
    subset = split.hub_subset or task.hub_subset
    try:
        rows = datasets.load_dataset(task.hub, subset, split=split.hub)
    except Exception as error:  # the library and the network raise many types
        raise ConfigError(
            f"task.hub {task.hub} ({subset}, {split.hub}) cannot be loaded from the hub "
            f"({type(error).__name__}: {hub_reason(error)}); check the network, or give files with data.dir"
        ) from None
    if task.kind != "tags":
        return list(rows)
    names = getattr(getattr(rows.features[task.label_column], "feature", None), "names", None)
    if names is None:
        return list(rows)
    return [row | {task.label_column: [names[tag] for tag in row[task.label_column]]} for row in rows]


def read_file(task: TaskConfig, path: Path, split: str, log: Log) -> list[Row]:
    """The rows of a file: SQuAD's JSON, JSON lines, or TSV."""
    try:
        with fsspec.open(str(path), "rt", encoding="utf-8-sig", newline="\n", compression="infer") as file:
            if task.kind == "squad":
                return list(squad_rows(file.read(), path))
            if ".jsonl" in path.suffixes:
                return list(json_rows(file, path))
            if task.kind == "tags":
                return list(conll_rows(file, task, path))
            return tsv_rows(file, task, path, split, log)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({with_type(error)}); give a UTF-8 file") from None


def json_rows(lines: Iterable[str], path: Path) -> Iterator[Row]:
    """One JSON object per line."""
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path} line {number} is not JSON ({error})") from None
        if not isinstance(row, dict):
            raise ConfigError(f"{path} line {number} is {line[:40]!r}; allowed: a JSON object")
        yield row


def tsv_rows(lines: Iterable[str], task: TaskConfig, path: Path, split: str, log: Log) -> list[Row]:
    """Rows of a TSV file without quoting. The first line names the columns unless the task has ``no_header``.

    A few training rows with missing columns (QQP has some) are skipped and logged; in other splits they are an error.
    """
    cells = [line.rstrip("\r\n").split("\t") for line in lines]
    needed = set(task.columns) | (set() if split.startswith("test") else {task.label_column})
    if not cells:
        raise ConfigError(f"{path} is empty")
    has_header = needed <= set(cells[0])
    if not has_header and (task.no_header is None or len(cells[0]) != len(task.no_header)):
        raise ConfigError(
            f"{path} has the columns {', '.join(cells[0])[:200]}; {task.name} needs {', '.join(sorted(needed))}: "
            "give the file as GLUE publishes it"
        )
    header, first = (cells[0], 1) if has_header else (task.no_header or [], 0)
    short = [number for number, row in enumerate(cells[first:], first + 1) if len(row) < len(header)]
    if short and (split != "train" or len(short) > MAX_SHORT_ROWS * len(cells)):
        found = len(cells[short[0] - 1])
        raise ConfigError(f"{path} line {short[0]} has {found} columns; allowed: {len(header)}, separated by tabs")
    if short:
        log(f"{path}: skipped {len(short)} rows with too few columns, the first in line {short[0]}")
    return [dict(zip(header, row, strict=False)) for row in cells[first:] if len(row) >= len(header)]


def squad_rows(text: str, path: Path) -> Iterator[Row]:
    """The questions of SQuAD's JSON with the keys of the hub: id, context, question, answers, maybe is_impossible."""
    try:
        for article in json.loads(text)["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    yield {"answers": []} | question | {"context": paragraph["context"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not in SQuAD's format, data[].paragraphs[].qas[] ({with_type(error)})") from None


def conll_rows(lines: Iterable[str], task: TaskConfig, path: Path) -> Iterator[Row]:
    """A sentence each: a word a line with its tag in the last column, and an empty line between sentences.

    Columns are separated by spaces or tabs, and lines end as on any system. ``-DOCSTART-`` lines and comments are
    passed over: a comment begins with # and does not end in a tag.
    """
    words: list[str] = []
    tags: list[str] = []
    parts = (part for line in lines for part in line.rstrip("\r\n").split("\r"))
    for number, line in enumerate((*parts, ""), 1):
        cells = re.findall(r"[^ \t]+", line)  # other spaces are part of a word
        if (cells and cells[0] == "-DOCSTART-") or (line.startswith("#") and not TAG.fullmatch(cells[-1])):
            continue
        if not cells:
            if words:
                yield {task.columns[0]: words, task.label_column: tags}
            words, tags = [], []
            continue
        if len(cells) < 2 or not TAG.fullmatch(cells[-1]):
            found = f"{path} line {number} is {line.strip()[:60]!r}"
            raise ConfigError(f"{found}; allowed: a word, maybe other columns, and a tag: {ALLOWED}")
        words.append(cells[0])
        tags.append(cells[-1])
