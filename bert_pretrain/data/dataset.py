"""The shards of a split as one sequence of samples, checked against the options and the vocabulary of the run."""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bert_pretrain.data.shards import SHARD_FIELDS, Arrays, ShardReader, check_ids, data_fingerprint, shard_paths
from bert_pretrain.errors import ConfigError, require

_OPEN_SHARDS = 64  # bounds the open files
_PAUSES = (1.0, 10.0)  # seconds before a shard is opened and read again: network file systems come back


@dataclass
class DataConfig:
    """Options ``data.*``."""

    dir: str
    """The directory of the shards, as data_prep.prepare wrote it or in the published layout."""
    tokenizer: str
    """The tokenizer's folder; it is copied into every checkpoint."""
    sequence_length: int
    """L of the shards; asked for, so that phase 2 cannot run on the shards of phase 1."""
    masking: str
    """``static`` uses the masks in the shards, ``dynamic`` draws new ones for every epoch."""
    masked_lm_prob: float | None
    """Dynamic only: the share of tokens to predict; null is what the shards' header says."""
    check: str
    """``content`` reads every training shard once before the first step and compares ids and checksums;
    ``headers`` looks at names, shapes and headers only; ``auto`` is content up to 4 GiB of shards."""
    block_size: int
    """Samples read at once; the unit in which an epoch's order is drawn."""
    prefetch: int
    """Micro-batches prepared ahead."""

    def __post_init__(self) -> None:
        require(self.sequence_length >= 8, "data.sequence_length", self.sequence_length, "8 or more")
        require(self.masking in ("static", "dynamic"), "data.masking", self.masking, "static, dynamic")
        share = self.masked_lm_prob
        require(share is None or 0.0 < share < 1.0, "data.masked_lm_prob", share, "null, or between 0 and 1")
        require(self.check in ("auto", "content", "headers"), "data.check", self.check, "auto, content, headers")
        require(self.block_size >= 1, "data.block_size", self.block_size, "1 or more")
        require(self.prefetch >= 1, "data.prefetch", self.prefetch, "1 or more")


def joined(parts: list[Arrays]) -> Arrays:
    """Rows one after the other."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in SHARD_FIELDS}


class ShardSet:
    """The shards of one split as one sequence of samples. At most 64 files are open at a time."""

    def __init__(self, readers: list[ShardReader], vocab_size: int) -> None:
        self.paths = [reader.path for reader in readers]
        self.max_predictions = readers[0].max_predictions
        self.header = readers[0].header
        self.fingerprint = data_fingerprint(readers)
        self.ends = np.cumsum([reader.samples for reader in readers])
        self.samples = int(self.ends[-1])
        self.vocab_size = vocab_size
        self._open: OrderedDict[int, ShardReader] = OrderedDict()

    def read(self, start: int, stop: int) -> Arrays:
        """Samples ``start`` to ``stop``, past the end going on at the beginning.

        Raises ``ConfigError`` where a shard cannot be read, at the third attempt, or holds what it should not.
        """
        parts = []
        while start < stop:
            at = start % self.samples
            shard = int(np.searchsorted(self.ends, at, side="right"))
            first = int(self.ends[shard - 1]) if shard else 0
            take = min(stop - start, int(self.ends[shard]) - at)
            parts.append(self._read(shard, at - first, at - first + take))
            start += take
        return joined(parts)

    def _read(self, shard: int, start: int, stop: int) -> Arrays:
        for pause in (*_PAUSES, None):
            try:
                arrays = self._reader(shard).read(start, stop)
                check_ids(arrays, self.vocab_size, self.paths[shard])
                return arrays
            except ConfigError as error:
                if pause is None:
                    raise ConfigError(f"{error}; the same command goes on from the newest checkpoint") from None
                if shard in self._open:
                    self._open.pop(shard).close()
                time.sleep(pause)
        raise AssertionError

    def _reader(self, shard: int) -> ShardReader:
        if shard not in self._open:
            if len(self._open) >= _OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
            reader = ShardReader(self.paths[shard])
            before = int(self.ends[shard] - (self.ends[shard - 1] if shard else 0))
            if reader.samples != before:
                raise ConfigError(f"shard {reader.path} has {reader.samples} samples and had {before} as the run began")
            self._open[shard] = reader
        self._open.move_to_end(shard)
        return self._open[shard]


def open_split(
    config: DataConfig, split: str, vocab_size: int, report: Callable[[str], None] = lambda _: None
) -> ShardSet | None:
    """Open and check one split; None where the directory has no such shards.

    Raises ``ConfigError`` where a shard is unreadable, does not fit ``data.sequence_length`` or the model's
    vocabulary, or differs from its neighbours.
    """
    paths = shard_paths(Path(config.dir), split)
    if not paths:
        return None
    readers = [ShardReader(path) for path in paths]
    for reader in readers:
        _check_fit(reader, config, vocab_size, readers[0])
    small = sum(path.stat().st_size for path in paths) <= 4 << 30
    if config.check == "content" or (config.check == "auto" and small):
        for reader in readers:
            report(f"checking {reader.path.name}")
            reader.check_content(vocab_size)
    kept = [reader for reader in readers if reader.samples]
    shards = ShardSet(kept, vocab_size) if kept else None
    for reader in readers:
        reader.close()
    return shards


def _check_fit(reader: ShardReader, config: DataConfig, vocab_size: int, first: ShardReader) -> None:
    if reader.sequence_length != config.sequence_length:
        raise ConfigError(
            f"data.sequence_length is {config.sequence_length}, but shard {reader.path} has samples of "
            f"{reader.sequence_length} tokens; set data.sequence_length={reader.sequence_length} or data.dir to "
            "other shards"
        )
    if reader.max_predictions != first.max_predictions:
        raise ConfigError(
            f"shard {reader.path} has room for {reader.max_predictions} masked tokens a sample, {first.path.name} for "
            f"{first.max_predictions}; keep one set in a directory"
        )
    header = reader.header
    if header is None:
        return
    if header.vocab_size != vocab_size:
        raise ConfigError(
            f"model.vocab_size is {vocab_size}, but shard {reader.path} was made with a vocabulary of "
            f"{header.vocab_size}; set model.vocab_size={header.vocab_size} or data.dir to other shards"
        )
    if first.header is not None and header.vocab_hash != first.header.vocab_hash:
        raise ConfigError(
            f"shards {first.path.name} and {reader.path.name} in {reader.path.parent} were made with different "
            "vocabularies; keep one set in a directory"
        )


def check_vocabulary(config: DataConfig, splits: list[ShardSet], report: Callable[[str], None]) -> None:
    """Compare ``data.tokenizer`` with the vocabulary that the shards were made with. Raises ``ConfigError``."""
    path = Path(config.tokenizer) / "vocab.txt"
    if not path.is_file():
        report(f"no vocabulary at {path}: checkpoints will hold no tokenizer (data.tokenizer names its folder)")
        return
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    for shards in splits:
        if shards.header is not None and shards.header.vocab_hash != found:
            raise ConfigError(
                f"data.tokenizer is {config.tokenizer!r}, but {shards.paths[0]} was made with another vocabulary; "
                "give the tokenizer that data_prep.prepare wrote beside the shards"
            )
