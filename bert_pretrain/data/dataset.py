"""The shards of a split as one sequence of samples, checked against the options and the vocabulary of the run."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Protocol

import numpy as np

from bert_pretrain.data.options import DataConfig
from bert_pretrain.data.shard_cache import remote_folder
from bert_pretrain.data.shard_directory import (
    MANIFEST,
    check_listed,
    data_fingerprint,
    directory_notes,
    read_manifest,
    shard_paths,
)
from bert_pretrain.data.shards import SHARD_FIELDS, Arrays, ShardReader
from bert_pretrain.data.tokenizer_files import TokenTable, has_tokenizer, read_tokenizer
from bert_pretrain.errors import ConfigError
from bert_pretrain.files.retry import DamagedError
from bert_pretrain.launch_environment import local_rank

_OPEN_SHARDS = 64
_SMALL = 4 << 30  # bytes of shards that data.check=auto reads
_FIRST_SAMPLES = 64  # looked at, for second segments


def concatenated(parts: list[Arrays]) -> Arrays:
    """The rows of all parts."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in SHARD_FIELDS}


class Samples(Protocol):
    """What a run needs to know of its samples."""

    samples: int
    """0 if the number is not known."""
    max_predictions: int
    fingerprint: str
    """Changes when the samples do."""


class SampleSet(Samples, Protocol):
    """Samples that are read by their numbers."""

    def read(self, start: int, stop: int) -> Arrays:
        """Samples ``start`` to ``stop``; past the end it continues at sample 0."""


class ShardSet:
    """The shards of one split as one sequence of samples. At most 64 files are open at a time."""

    def __init__(self, readers: list[ShardReader], vocab_size: int, id_limit: int | None = None) -> None:
        """``vocab_size``: the model's; ``id_limit``: ids must be below this, by default below ``vocab_size``."""
        self.paths = [reader.path for reader in readers]
        self.max_predictions = readers[0].max_predictions
        self.header = readers[0].header
        self.fingerprint = data_fingerprint((reader.path.name, reader.samples, reader.checksum) for reader in readers)
        self.bounds = np.cumsum([0, *(reader.samples for reader in readers)])
        self.samples = int(self.bounds[-1])
        self.vocab_size, self.id_limit = vocab_size, id_limit or vocab_size
        self._open: dict[int, ShardReader] = {}

    def read(self, start: int, stop: int) -> Arrays:
        """Samples ``start`` to ``stop``; past the end it continues at sample 0.

        An outage of the disk is waited out. Raises ``ConfigError`` if a shard cannot be read, or holds invalid ids.
        """
        parts = []
        while start < stop:
            sample = start % self.samples
            shard = int(np.searchsorted(self.bounds, sample, side="right")) - 1
            first, end = int(self.bounds[shard]), int(self.bounds[shard + 1])
            size = min(stop - start, end - sample)
            parts.append(self._read(shard, sample - first, sample - first + size))
            start += size
        return concatenated(parts)

    def prefetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Of shards at an address, download in the background those with these samples (first, number), in order."""
        folder = remote_folder(self.paths[0].parent)
        if folder is not None and local_rank() == 0:
            wanted = [number for first, count in ranges for number in self._shards_of(first, count)]
            folder.prefetch([self.paths[number].name for number in dict.fromkeys(wanted)])

    def _shards_of(self, first: int, count: int) -> Iterator[int]:
        """The shards with the samples from ``first`` on; past the end it continues at sample 0."""
        for start, stop in ((first, min(first + count, self.samples)), (0, first + count - self.samples)):
            for shard in range(len(self.paths)):
                if self.bounds[shard] < stop and self.bounds[shard + 1] > start:
                    yield shard

    def sources(self) -> tuple[np.ndarray, list[str]] | None:
        """The number of each sample's corpus, (N,), and the names of the corpora; None if the shards do not tell.

        Raises ``ConfigError`` if a number has no name in the manifest.
        """
        found = [self._reader(shard).source() for shard in range(len(self.paths))]
        if all(part is None for part in found):
            return None
        sizes = np.diff(self.bounds)  # the shards of one corpus do not tell, to which others were appended
        parts = [np.zeros(size, np.int64) if part is None else part for part, size in zip(found, sizes, strict=True)]
        numbers = np.concatenate(parts)
        manifest = read_manifest(self.paths[0].parent)
        names = (manifest or {}).get("corpora", [])
        if numbers.max() >= len(names):
            raise ConfigError(
                f"data.dir {self.paths[0].parent}: a sample is of corpus {numbers.max()}, but {MANIFEST} names "
                f"{len(names)} corpora; put the {MANIFEST} of these shards beside them"
            )
        return numbers, names

    def _read(self, shard: int, start: int, stop: int) -> Arrays:
        try:
            return self._reader(shard).read(start, stop, self.id_limit)
        except DamagedError as error:
            raise ConfigError(f"{error}; then rerun the same command to resume from the newest checkpoint") from None

    def _reader(self, shard: int) -> ShardReader:
        if shard not in self._open:
            if len(self._open) >= _OPEN_SHARDS:
                self._open.pop(next(iter(self._open))).close()
            reader = ShardReader(self.paths[shard])
            expected = int(self.bounds[shard + 1] - self.bounds[shard])
            if reader.samples != expected:
                raise ConfigError(
                    f"shard {reader.path} had {expected} samples when the run began, has now {reader.samples}"
                )
            self._open[shard] = reader
        return self._open[shard]


class ShardOptions(Protocol):
    """The options of ``DataConfig`` that decide whether shards fit."""

    dir: str
    sequence_length: int
    check: str


def open_split(
    config: ShardOptions,
    split: str,
    vocab_size: int,
    report: Callable[[str], None] = lambda _: None,
    tokens: int | None = None,
    share: tuple[int, int] = (0, 1),
) -> ShardSet | None:
    """Open and check one split, one shard after the other; None if the directory has no samples of it.

    ``tokens``: the size of the tokenizer; the ids of shards without a header must be below it. ``share``: (i, n) checks
    the content of every n-th shard from i on; other processes check the others.

    Raises ``ConfigError`` if a shard cannot be read, is not the one that the manifest lists, or does not fit
    ``data.sequence_length``, the vocabulary or the other shards.
    """
    directory = Path(config.dir)
    paths = shard_paths(directory, split)
    manifest = read_manifest(directory)
    for note in directory_notes(directory):
        report(note)
    if not paths:
        return None
    is_remote = remote_folder(directory) is not None  # its shards are checked whenever they are downloaded
    is_small = not is_remote and sum(path.stat().st_size for path in paths) <= _SMALL
    reads_all = config.check == "content" or (config.check == "auto" and is_small)
    readers: list[ShardReader] = []
    rows = {row["name"]: row for row in manifest["shards"]} if manifest else {}
    for number, path in enumerate(paths):
        if is_remote and readers and config.check != "content":
            readers.append(readers[0].of_same_set(path, rows[path.name]))
            continue
        with closing(ShardReader(path)) as reader:
            readers.append(reader)
            _check_fit(reader, config, vocab_size, readers[0])
            check_listed(reader, manifest)
            if reads_all and number % share[1] == share[0]:
                report(f"checking {path.name}")
                reader.check_content(vocab_size if reader.header else min(vocab_size, tokens or vocab_size))
    nonempty = [reader for reader in readers if reader.samples]
    limit = tokens if tokens is not None and all(reader.header is None for reader in readers) else vocab_size
    return ShardSet(nonempty, vocab_size, min(vocab_size, limit)) if nonempty else None


def _check_fit(reader: ShardReader, config: ShardOptions, vocab_size: int, first: ShardReader) -> None:
    if reader.sequence_length != config.sequence_length:
        raise ConfigError(
            f"data.sequence_length is {config.sequence_length}, but shard {reader.path} has samples of "
            f"{reader.sequence_length} tokens; set data.sequence_length={reader.sequence_length} or data.dir to "
            "other shards"
        )
    if reader.max_predictions != first.max_predictions:
        raise ConfigError(
            f"shard {reader.path} has up to {reader.max_predictions} masked tokens a sample, {first.path.name} up to "
            f"{first.max_predictions}; keep only one set of shards in a directory"
        )
    header = reader.header
    if header is None:
        return
    if header.vocab_size > vocab_size:  # a larger model is padded, as 30,522 words to 30,528
        raise ConfigError(
            f"model.vocab_size is {vocab_size}, but shard {reader.path} was made with a vocabulary of "
            f"{header.vocab_size}; set model.vocab_size={header.vocab_size} or data.dir to other shards"
        )
    if first.header is not None and header.vocab_hash != first.header.vocab_hash:
        raise ConfigError(
            f"shards {first.path.name} and {reader.path.name} in {reader.path.parent} were made with different "
            "vocabularies; keep only one set of shards in a directory"
        )


def are_pairs(shards: ShardSet) -> bool:
    """Whether the first samples have a second segment, without which next-sentence labels mean nothing."""
    return bool(shards.read(0, min(shards.samples, _FIRST_SAMPLES))["segment_ids"].any())


def report_single_segments(shards: ShardSet, next_sentence: bool, report: Callable[[str], None]) -> None:
    """Report that next-sentence prediction has nothing to learn from samples of one segment."""
    if next_sentence and not are_pairs(shards):
        report(
            f"model.next_sentence is true, but the samples in {shards.paths[0].parent} are single segments, all with "
            "the same label; use model.next_sentence=false, or shards of pairs (prepare sample_kind=pair)"
        )


def tokenizer_size(config: DataConfig) -> int | None:
    """The number of tokens of ``data.tokenizer``, None if there is none. Raises ``ConfigError``."""
    folder = Path(config.tokenizer)
    return len(read_tokenizer(folder).tokens) if has_tokenizer(folder) else None


def check_vocabulary(config: DataConfig, splits: list[ShardSet], report: Callable[[str], None]) -> None:
    """Raise ``ConfigError`` if ``data.tokenizer`` has other tokens than the shards; report a missing one."""
    folder = Path(config.tokenizer)
    if not has_tokenizer(folder):
        report(f"no vocabulary at {folder}: checkpoints will not contain a tokenizer; set data.tokenizer to its folder")
        return
    table = read_tokenizer(folder)
    for shards in splits:
        if shards.header is not None and shards.header.vocab_hash != table.vocab_hash:
            raise ConfigError(
                f"data.tokenizer is {config.tokenizer!r}, but {shards.paths[0]} was made with another vocabulary; "
                "give the tokenizer that bert-pretrain prepare wrote beside the shards"
            )
        check_size(table, folder, shards.vocab_size)


def check_size(table: TokenTable, tokenizer: Path | str, vocab_size: int) -> None:
    """Raise ``ConfigError`` if the ``tokenizer`` has more tokens than the model, ``vocab_size``."""
    if len(table.tokens) > vocab_size:
        raise ConfigError(
            f"data.tokenizer {tokenizer} has {len(table.tokens)} tokens, but the model only {vocab_size}; set "
            f"model.vocab_size={len(table.tokens)} or give the tokenizer that the data was made with"
        )
