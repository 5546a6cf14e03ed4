"""Where rows come from: a folder of ``save_to_disk``, a folder of files that ``datasets`` reads, or a hub address.

The library is imported when a source is opened: it takes seconds to load.
"""

import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bert_pretrain.data.ready_made_options import COLUMNS, ReadyMadeConfig
from bert_pretrain.data.saved_set import check_saved, is_saved
from bert_pretrain.data.tokenizer_files import FILES, has_tokenizer
from bert_pretrain.errors import OUTAGES, ConfigError, did_you_mean, on_one_line
from bert_pretrain.files.hub_download import HUB_NAME, be_quiet, hub_folder, hub_reason
from bert_pretrain.files.retry import retried, say

HUB = "hf://"
_HUB_ADDRESS = re.compile(r"hf://(?:datasets/)?([\w.-]+(?:/[\w.-]+)?)(?:@([\w./-]+))?")
_COMMIT = re.compile(r"hf://datasets/[^@]+@([0-9a-f]{40})/")
_READ_EMPTY_FILES = ("json", "text")  # readers that find no rows in a file of 0 bytes beside others
_NETWORK = {"aiohttp", "asyncio", "fsspec", "httpcore", "httpx", "huggingface_hub", "requests", "urllib3"}
_WAIT_FOR = (408, 429)  # HTTP: a timeout, too many requests
_ROWS = 256  # of text that are read and tokenised together
_SAVED_FILES = 64  # that a saved set is dealt into

Result = TypeVar("Result")


def _check_files(paths: list[str], module: str, where: str) -> None:
    """Raise ``ConfigError`` for a file of 0 bytes where ``module``, a reader of ``datasets``, needs content."""
    empty = [path for path in paths if os.path.getsize(path) == 0]
    if empty and (module not in _READ_EMPTY_FILES or len(empty) == len(paths)):
        raise ConfigError(
            f"{where}: {empty[0]} is empty (0 bytes) and has no rows; write it again, or give a folder without it"
        )


def check_address(address: str) -> None:
    """Raise ``ConfigError`` if ``data.dir`` is neither a folder nor the address of a data set on the hub."""
    if address.startswith(HUB) and not _HUB_ADDRESS.fullmatch(address):
        raise ConfigError(
            f"data.dir is {address!r}; allowed: hf://OWNER/NAME, also with @REVISION; data.subset, data.split choose "
            "among its files"
        )
    if not address.startswith(HUB) and not Path(address).is_dir():
        raise ConfigError(
            f"data.dir is {address!r}, which is no directory; give one, or hf://OWNER/NAME for a data set on the hub"
        )


def local_tokenizer(name: str) -> Path:
    """The folder of ``data.tokenizer``: ``name`` itself, or the hub's tokenizer of that name, downloaded.

    Raises ``ConfigError`` if there is none.
    """
    folder = Path(name).expanduser()
    if has_tokenizer(folder):
        return folder
    where = f"data.tokenizer is {name!r}, which is no tokenizer's folder (tokenizer.json or vocab.txt)"
    if folder.is_dir() or not HUB_NAME.fullmatch(name):
        raise ConfigError(f"{where}; give a folder or a name on the hub, such as bert-base-uncased")
    found = hub_folder(name, "data.tokenizer", [[*FILES, "config.json"]], has_tokenizer)
    if not has_tokenizer(found):
        raise ConfigError(f"{where}; that model on the hub has none of these files either: give another")
    return found


def row_error(error: Exception, what: str) -> OSError | ConfigError:
    """``error`` of ``datasets`` or of the network while reading ``what``: an outage (an ``OSError``) or one message."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    for part in chain:
        status = getattr(getattr(part, "response", None), "status_code", None) or getattr(part, "status", None)
        if isinstance(status, int) and 400 <= status < 500 and status not in _WAIT_FOR:
            break
        if isinstance(part, FileNotFoundError) or "Offline" in type(part).__name__:
            break
        number = getattr(part, "errno", None)
        package = type(part).__module__.partition(".")[0]
        if number in OUTAGES or isinstance(part, (ConnectionError, TimeoutError)) or package in _NETWORK:
            return OSError(number if number in OUTAGES else errno.ETIMEDOUT, on_one_line(error))
    told = chain[1] if type(error).__name__ == "DatasetGenerationError" and len(chain) > 1 else error  # names no reason
    return ConfigError(f"{what} cannot be read ({type(told).__name__}: {hub_reason(told)})")


@dataclass(frozen=True)
class RowSource:
    """An opened ``data.dir``."""

    where: str
    """For messages: the option and its value."""
    splits: list[str]
    open: Callable[[str, bool], Any]
    """(split, streaming) -> ``Dataset``, or ``IterableDataset``."""
    origin: str
    """Changes when the files do: their names, with sizes, or on the hub the commit."""

    def opened(self, split: str, streaming: bool) -> Any:
        """One split. Raises ``ConfigError`` if the set does not have it, or it cannot be read."""
        if split not in self.splits:
            raise ConfigError(f"data.split is {split!r}, but {self.where} {did_you_mean(split, self.splits)}")
        return once(lambda: self.open(split, streaming), self.where)


def once(work: Callable[[], Result], what: str) -> Result:
    """``work()``; errors of the library and of the network as ``ConfigError``, without another attempt."""
    try:
        return work()
    except ConfigError:
        raise
    except Exception as error:
        found = row_error(error, what)
        if isinstance(found, OSError):
            found = ConfigError(f"{what} cannot be read ({found.strerror})")
        raise found from None


def open_source(config: ReadyMadeConfig, address: str) -> RowSource:
    """The rows of ``address``, which is ``data.dir``. Raises ``ConfigError`` if they cannot be found."""
    import datasets

    datasets.disable_progress_bars()
    be_quiet()
    folder, where = Path(address), f"data.dir {address}"
    if not address.startswith(HUB) and is_saved(folder):
        check_saved(folder, "data.dir")
        loaded = once(lambda: datasets.load_from_disk(address), where)
        parts = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {config.split: loaded}

        def open_saved(split: str, streaming: bool) -> Any:
            found = parts[split]
            return found.to_iterable_dataset(min(_SAVED_FILES, max(1, len(found)))) if streaming else found

        origin = " ".join(f"{name} {part._fingerprint}" for name, part in parts.items())
        return RowSource(where, list(parts), open_saved, origin)
    match = _HUB_ADDRESS.fullmatch(address)
    name, revision = (match[1], match[2] or config.revision) if match else (address, None)
    builder = once(lambda: datasets.load_dataset_builder(name, config.subset, revision=revision), where)
    files = builder.config.data_files or {}
    splits = [str(split) for split in files or builder.info.splits or []]
    paths = sorted(str(path) for part in files.values() for path in part)
    commit = _COMMIT.match(paths[0]) if paths else None
    revision = commit[1] if commit else revision

    def open_files(split: str, streaming: bool) -> Any:
        if not match:
            _check_files([str(path) for path in files[split]], str(builder.name), where)
        return datasets.load_dataset(name, config.subset, split=split, streaming=streaming, revision=revision)

    sizes = [f"{os.path.relpath(path, folder.resolve())} {os.path.getsize(path)}" for path in paths if not match]
    return RowSource(where, splits, open_files, "\n".join(paths if match else sizes))


def check_column(found: Any, config: ReadyMadeConfig, where: str, fits: Callable[[Any], bool], allowed: str) -> None:
    """Raise ``ConfigError`` unless the pyarrow schema ``found`` has the column, of a type that ``fits``."""
    name = config.rows_column
    if name not in found.names:
        other = next(kind for kind in COLUMNS if kind != config.kind)
        hint = f"; for {COLUMNS[other]} use data={other}" if COLUMNS[other] in found.names else ""
        names, hint = ", ".join(found.names), hint or "; give one of them"
        raise ConfigError(f"data.column is {name!r}, but {where} has the columns {names}{hint}")
    if not fits(found.field(name).type):
        raise ConfigError(f"{where}: column {name!r} holds {found.field(name).type}; allowed: {allowed}")


class TextFiles:
    """The files of one split of text, read row by row, from any row on."""

    def __init__(self, source: RowSource, split: str, config: ReadyMadeConfig) -> None:
        """Raises ``ConfigError`` if there is no text: the first rows are read."""
        import pyarrow as pa

        self.where = f"{source.where}, split {split}"
        self.column = config.rows_column
        self._rows = source.opened(split, streaming=True)
        self.files = int(self._rows.num_shards)
        first = once(lambda: next(iter(self._rows.with_format("arrow").iter(1)), None), self.where)
        if first is None:
            raise ConfigError(f"{self.where} has no rows")
        fits = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)

        def is_text(kind: Any) -> bool:
            return any(fit(kind) for fit in fits)

        check_column(first.schema, config, self.where, is_text, "text")
        self._check = partial(  # of each file; rows without text may have no type
            check_column, config=config, fits=lambda kind: is_text(kind) or pa.types.is_null(kind), allowed="text"
        )

    def read(self, file: int, row: int = 0) -> Iterator[tuple[np.ndarray, list[str]]]:
        """The rows of a file from ``row`` on, some at a time: their numbers (n,) and texts.

        After an outage the file is opened again at the row that comes next. Raises ``OutageError`` if it goes on for
        minutes, ``ConfigError`` if the file cannot be read.
        """
        what, rows = f"{self.where}, file {file + 1} of {self.files}", None

        def attempt() -> Any:
            nonlocal rows
            try:
                if rows is None:
                    opened = self._rows.shard(num_shards=self.files, index=file).skip(row)
                    rows = iter(opened.with_format("arrow").iter(_ROWS))
                if (table := next(rows, None)) is None:
                    return None
                self._check(table.schema, where=what)
                return table.column(self.column).to_pylist()
            except ConfigError:
                raise
            except Exception as error:
                rows = None
                raise row_error(error, what) from None

        while (texts := retried(attempt, what, say)) is not None:
            yield np.arange(row, row + len(texts)), [text or "" for text in texts]
            row += len(texts)


def fingerprint(*parts: np.ndarray | str) -> str:
    """A hash of what a set is made of: whole numbers, whatever their type, and text."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else np.ascontiguousarray(part, dtype="<i8").data)
        digest.update(b"\n")
    return digest.hexdigest()
