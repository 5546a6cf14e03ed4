"""The shard format, shared by data preparation and training: how a shard is written, read and checked.

A shard is one HDF5 file with NVIDIA's six data sets. N samples, L sequence length, P maximum predictions per sample:

    input_ids             (N, L)  token ids after masking, 0-padded
    input_mask            (N, L)  1 for a real token, 0 for padding
    segment_ids           (N, L)  0 for [CLS] A [SEP], 1 for B [SEP], 0 for padding
    masked_lm_positions   (N, P)  ascending, 0-padded (position 0 is [CLS], which is never masked)
    masked_lm_ids         (N, P)  the original ids at these positions, 0-padded
    next_sentence_labels  (N,)    1 if the second segment is a random one

Shards of several corpora have a seventh, ``source`` (N,): the corpus that the first segment is from, by its number in
the list ``corpora`` of the manifest. Only evaluation reads it.

Any integer dtype is read. Our own files have a :class:`ShardHeader` and a checksum as attributes; files without them,
as the published pipeline writes them, are accepted as legacy. ``shard_directory`` has the manifest. This
module needs h5py and numpy only: data preparation must not load torch.
"""

import copy
import hashlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from bert_pretrain.data.shard_cache import held
from bert_pretrain.errors import ConfigError
from bert_pretrain.files.file_system import new_file
from bert_pretrain.files.retry import DamagedError, read_patiently

FORMAT_VERSION = 1
_LIBVER = ("v108", "latest")  # readable by HDF5 1.8 (2008), the first version whose metadata has checksums
SHARD_FIELDS = (
    "input_ids",
    "input_mask",
    "segment_ids",
    "masked_lm_positions",
    "masked_lm_ids",
    "next_sentence_labels",
)
SOURCE = "source"
RESTORE = "restore it from a copy, or make the shards again with bert-pretrain prepare"
_READ_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError)  # what h5py raises for outages and damage
_FIRST_BYTES = 4096
_ROWS_PER_HASH = 1024  # the converted rows stay in the processor's cache
_ROWS_PER_READ = 16_384  # bounds the memory of a pass over a whole shard

Result = TypeVar("Result")
Arrays = dict[str, np.ndarray]
"""Shard rows: one array for each of ``SHARD_FIELDS``."""


@dataclass(frozen=True)
class ShardHeader:
    """How a shard was made; stored as HDF5 attributes."""

    sequence_length: int
    max_predictions: int
    vocab_size: int
    vocab_hash: str
    tokenizer_hash: str
    masked_lm_prob: float
    whole_word_masking: bool
    short_seq_prob: float
    dupe_factor: int
    seed: int
    split: str
    mask_share: float = 0.8
    """Share of the predicted tokens that are replaced by [MASK]. Stored where it is not this one, as is the next."""
    random_share: float = 0.1
    """Share of the predicted tokens that are replaced by a random word."""


_DEFAULTS = {field.name: field.default for field in fields(ShardHeader) if field.default is not MISSING}


def select(arrays: Arrays, rows: slice | np.ndarray) -> Arrays:
    """Some rows of all six arrays."""
    return {name: arrays[name][rows] for name in SHARD_FIELDS}


def content_checksum(parts: Iterable[Arrays]) -> str:
    """SHA-256 over the six data sets, in the order of ``SHARD_FIELDS``, as little-endian int32 rows.

    Independent of dtype, storage layout, and how the rows are cut into parts.
    """
    digests = [hashlib.sha256() for _ in SHARD_FIELDS]
    for arrays in parts:
        for name, digest in zip(SHARD_FIELDS, digests, strict=True):
            for start in range(0, len(arrays[name]), _ROWS_PER_HASH):
                rows = arrays[name][start : start + _ROWS_PER_HASH]
                digest.update(np.ascontiguousarray(rows, dtype="<i4").data)
    return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()


def write_shard(path: Path, arrays: Arrays, header: ShardHeader, source: np.ndarray | None = None) -> dict[str, Any]:
    """Write one shard and return its row for the manifest. ``source`` (N,): the number of each sample's corpus.

    The file gets its final name only when it is complete and on disk. Ids are stored in 16 bits if the vocabulary
    allows. Raises OSError for errors of the file system.
    """
    ids = np.uint16 if header.vocab_size <= 1 << 16 else np.int32
    dtypes = (ids, np.int8, np.int8, np.uint16, ids, np.int8)
    checksum = content_checksum([arrays])
    samples = len(arrays["input_ids"])
    with new_file(path) as temporary, h5py.File(temporary, "w", libver=_LIBVER) as file:
        for name, dtype in zip(SHARD_FIELDS, dtypes, strict=True):
            file.create_dataset(name, data=np.asarray(arrays[name], dtype=dtype))
        if source is not None:  # not in the checksum, so it has HDF5's own
            file.create_dataset(SOURCE, data=np.asarray(source, dtype=np.uint16), fletcher32=True)
        stated = {name: value for name, value in asdict(header).items() if _DEFAULTS.get(name) != value}
        attributes = {"format_version": FORMAT_VERSION, "samples": samples, "checksum": checksum, **stated}
        for key, value in attributes.items():  # fixed-length strings: a damaged heap of variable ones hangs HDF5
            text = h5py.string_dtype("utf-8", max(1, len(value.encode()))) if isinstance(value, str) else None
            file.attrs.create(key, value, dtype=text)
    return {"name": path.name, "split": header.split, "samples": samples, "checksum": checksum}


def _to_python(value: Any) -> Any:
    """An attribute as a Python number or string."""
    value = value.item() if isinstance(value, np.generic) else value
    return value.decode("utf-8") if isinstance(value, bytes) else value


class ShardReader:
    """One open shard: its shape, its header (None for a legacy file) and contiguous reads.

    An outage of the disk is waited out, damage is read once more. Raises ``ConfigError`` if the file is missing, may
    not be read, is damaged, or is not laid out as a shard.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open_file: h5py.File | None = None
        self.samples, self.sequence_length, self.max_predictions = self._patiently(self._read_layout)
        self.checksum: str | None = self._patiently(lambda file: _to_python(file.attrs.get("checksum")))
        self.header = self._patiently(self._read_header)

    def _patiently(self, work: Callable[[h5py.File], Result]) -> Result:
        """``work`` on the open file, which is opened again after an error."""

        def attempt() -> Result:
            with held(self.path) as may_be_removed:
                try:
                    if self._open_file is None:
                        self._open_file = self._open()
                    result = work(self._open_file)
                except Exception:
                    self.close()
                    raise
                if may_be_removed:
                    self.close()
                return result

        return read_patiently(attempt, f"shard {self.path}", RESTORE, _READ_ERRORS)

    def _open(self) -> h5py.File:
        # HDF5 opens files while it holds Python's lock: on a disk that hangs, not even heartbeats would be sent.
        with open(self.path, "rb") as file:
            file.read(_FIRST_BYTES)
        opened = h5py.File(self.path, "r", locking=False)  # shards get their names when they are whole
        expected = getattr(self, "samples", None)
        if expected not in (None, len(opened["next_sentence_labels"])):
            opened.close()
            raise ConfigError(f"shard {self.path} had {expected} samples when it was first opened, and has others now")
        return opened

    def _read_layout(self, file: h5py.File) -> tuple[int, int, int]:
        """N, L and P, after checking names, dtypes and shapes."""
        for name in SHARD_FIELDS:
            data = file.get(name)
            if not isinstance(data, h5py.Dataset):
                raise ConfigError(f"shard {self.path} has no data set {name!r}; a shard has {', '.join(SHARD_FIELDS)}")
            if data.dtype.kind not in "iu":
                raise ConfigError(f"shard {self.path}: {name} has dtype {data.dtype}; allowed: any integer dtype")
        for name in ("input_ids", "masked_lm_positions"):
            if file[name].ndim != 2:
                raise ConfigError(f"shard {self.path}: {name} has {file[name].ndim} dimensions; allowed: 2")
        samples, length = file["input_ids"].shape
        predictions = file["masked_lm_positions"].shape[1]
        expected = ((samples, length),) * 3 + ((samples, predictions),) * 2 + ((samples,),)
        for name, shape in zip(SHARD_FIELDS, expected, strict=True):
            if file[name].shape != shape:
                raise ConfigError(
                    f"shard {self.path}: {name} has shape {file[name].shape}, "
                    f"but input_ids and masked_lm_positions require {shape}"
                )
        return samples, length, predictions

    def _read_header(self, file: h5py.File) -> ShardHeader | None:
        attributes = file.attrs
        if "format_version" not in attributes:
            return None
        version = int(attributes["format_version"])
        if version != FORMAT_VERSION:
            raise ConfigError(
                f"shard {self.path} has format version {version}; this program reads version {FORMAT_VERSION}"
            )
        names = [field.name for field in fields(ShardHeader) if field.name in attributes]
        required = [field.name for field in fields(ShardHeader) if field.name not in _DEFAULTS]
        missing = [name for name in ("samples", *required) if name not in attributes]
        if missing:
            raise ConfigError(f"shard {self.path} lacks the attributes {', '.join(missing)}; {RESTORE}")
        if int(attributes["samples"]) != self.samples:
            raise ConfigError(
                f"shard {self.path} has {self.samples} rows, but {int(attributes['samples'])} samples in its header; "
                f"{RESTORE}"
            )
        return ShardHeader(**{name: _to_python(attributes[name]) for name in names})

    def of_same_set(self, path: Path, row: dict[str, Any]) -> "ShardReader":
        """The reader of another shard, which is not opened yet: as this one, but for its ``row`` of the manifest."""
        other = copy.copy(self)
        other.path = path
        other.samples = row["samples"]
        other.checksum = row.get("checksum")
        return other

    def read(self, start: int, stop: int, vocab_size: int | None = None) -> Arrays:
        """Rows ``start`` to ``stop`` of all six data sets, in the dtypes of the file, checked if given a vocabulary."""
        return self._patiently(lambda file: self._rows(file, start, stop, vocab_size))

    def _rows(self, file: h5py.File, start: int, stop: int, vocab_size: int | None) -> Arrays:
        arrays = {name: file[name][start:stop] for name in SHARD_FIELDS}
        return arrays if vocab_size is None else check_ids(arrays, vocab_size, self.path)

    def source(self) -> np.ndarray | None:
        """The number of each sample's corpus, (N,) int64; None if the shard does not tell."""

        def read(file: h5py.File) -> np.ndarray | None:
            return file[SOURCE][:].astype(np.int64).reshape(self.samples) if SOURCE in file else None

        return self._patiently(read)

    def check_content(self, vocab_size: int) -> None:
        """Read the whole shard once; raise ``ConfigError`` if ids or checksum are wrong.

        Legacy files have no checksum: only the range of their ids is checked.
        """

        def check(file: h5py.File) -> None:
            starts = range(0, self.samples, _ROWS_PER_READ)
            parts = (self._rows(file, start, start + _ROWS_PER_READ, vocab_size) for start in starts)
            if content_checksum(parts) != self.checksum and self.checksum is not None:
                raise DamagedError(
                    f"shard {self.path} is damaged: its content does not match the checksum in its header; {RESTORE}"
                )

        self._patiently(check)

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        with suppress(Exception):  # of a disk that does not answer
            if self._open_file is not None:
                self._open_file.close()
        self._open_file = None


def check_ids(arrays: Arrays, vocab_size: int, path: Path) -> Arrays:
    """``arrays``, or ``ConfigError`` if a token id, position, mask or label is out of range, or a sample has no token.

    Pages that a disk has lost are read as zeros.
    """
    length = arrays["input_ids"].shape[1]
    limits = {"input_ids": vocab_size, "masked_lm_ids": vocab_size, "masked_lm_positions": length}
    limits |= {"input_mask": 2, "segment_ids": 2, "next_sentence_labels": 2}
    for name, limit in limits.items():
        values = arrays[name]
        if values.size and (int(values.max()) >= limit or int(values.min()) < 0):
            worst = int(values.max()) if int(values.max()) >= limit else int(values.min())
            raise DamagedError(
                f"shard {path}: {name} holds {worst}, but the model takes 0 to {limit - 1}; the shard is damaged, or "
                "its vocabulary is not that of data.tokenizer and model.vocab_size"
            )
    if not arrays["input_mask"].any(1).all():
        raise DamagedError(f"shard {path} has samples without a token: it is damaged; {RESTORE}")
    return arrays
