"""What a corpus is: its options, its files, and what the manifest says of its source."""

import glob
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bert_pretrain.errors import ConfigError, require
from data_prep.sources.embedded import embedded_sources

KINDS = ("embedded", "text", "jsonl", "parquet", "wikipedia", "dataset")
COMPRESSIONS = ("", ".gz", ".bz2", ".xz", ".zst")
SUFFIXES = {
    "text": (".txt", ".text"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "parquet": (".parquet",),
    "wikipedia": (".xml",),
}
BOUNDARIES = ("blank_line", "file")
LINES = ("wrapped", "paragraph", "sentence")
NORMAL_FORMS = ("NFC", "NFKC", "none")


@dataclass(frozen=True)
class Source:
    """Where text comes from, for the manifest."""

    name: str
    version: str
    licence: str


@dataclass
class CleaningConfig:
    """The rules of ``configs/cleaning/``, where each is explained; :mod:`data_prep.sources.cleaning` applies them."""

    unicode: str
    prose_only: bool
    min_words: int
    max_symbol_share: float
    max_digit_share: float
    drop_boilerplate: bool
    min_document_words: int
    language_filter: bool

    def __post_init__(self) -> None:
        require(self.unicode in NORMAL_FORMS, "corpus.cleaning.unicode", self.unicode, ", ".join(NORMAL_FORMS))
        for name in ("max_symbol_share", "max_digit_share"):
            share = getattr(self, name)
            require(0 <= share <= 1, f"corpus.cleaning.{name}", share, "0 to 1")
        for name in ("min_words", "min_document_words"):
            count = getattr(self, name)
            require(count >= 0, f"corpus.cleaning.{name}", count, "0 or more")


@dataclass
class CorpusConfig:
    """One corpus. ``kind`` chooses the reader; the choices in ``configs/corpus/`` set and explain the rest."""

    kind: str
    path: str | None  # a file, a directory (searched with its sub-directories) or a glob pattern; a data set's name
    documents: str  # text: what ends a document, "blank_line" or "file"
    lines: str  # text: what a line is, part of a "wrapped" paragraph, a whole "paragraph", or a "sentence"
    text_field: str  # jsonl, parquet, dataset: the field that holds a document's text
    subset: str | None  # dataset: the configuration's name, such as 20231101.en
    split: str  # dataset: train, ...
    language: str  # for the sentence splitter and the language filter, ISO 639-1
    licence: str | None  # of your text; recorded in the manifest
    weight: float  # how often its documents count, beside those of other corpora
    drop_repeated_sentences: bool
    cleaning: CleaningConfig

    def __post_init__(self) -> None:
        require(self.kind in KINDS, "corpus.kind", self.kind, ", ".join(KINDS))
        require(self.documents in BOUNDARIES, "corpus.documents", self.documents, ", ".join(BOUNDARIES))
        require(self.lines in LINES, "corpus.lines", self.lines, ", ".join(LINES))
        require(0 < self.weight <= 1000, "corpus.weight", self.weight, "above 0, to 1000")
        if self.kind != "embedded" and not self.path:
            raise ConfigError(
                f"corpus.path is not set; corpus={self.kind} needs a file, a directory, a glob pattern, or, for "
                "corpus=dataset, the name of a data set; for example corpus.path=texts/"
            )


def corpus_files(corpus: CorpusConfig) -> list[Path]:
    """The files of a corpus that is read from files, sorted by name. Raises ``ConfigError`` where there are none."""
    if corpus.kind in ("embedded", "dataset"):
        return []
    assert corpus.path is not None
    given = Path(corpus.path)
    if given.is_file():
        return [given.absolute()]
    suffixes = tuple(suffix + packed for suffix in SUFFIXES[corpus.kind] for packed in COMPRESSIONS)
    if corpus.kind == "wikipedia":
        suffixes += (".bz2",)
    if given.is_dir():
        files = sorted(path for path in given.rglob("*") if path.name.lower().endswith(suffixes) and path.is_file())
        wanted = f"files that end in {' or '.join(SUFFIXES[corpus.kind])}, also with {', '.join(COMPRESSIONS[1:])}"
    else:
        files = sorted(Path(name) for name in glob.glob(corpus.path, recursive=True) if Path(name).is_file())
        wanted = "an existing file, a directory, or a glob pattern that matches files"
    if not files:
        raise ConfigError(f"corpus.path is {corpus.path!r}, where nothing was found; it takes {wanted}")
    return [path.absolute() for path in files]


def corpus_sources(name: str, corpus: CorpusConfig) -> dict[str, Source]:
    """The sources of a corpus by name: the packages of the embedded prose, else the corpus itself."""
    if corpus.kind == "embedded":
        return {key: Source(key, version, licence) for key, (version, licence) in embedded_sources().items()}
    licence = corpus.licence or "not stated (corpus.licence)"
    if corpus.kind == "dataset":
        return {name: Source(str(corpus.path), f"{corpus.subset or 'default'}, {corpus.split}", licence)}
    files = corpus_files(corpus)
    size = sum(path.stat().st_size for path in files)
    count = f"{len(files)} files" if len(files) > 1 else files[0].name
    return {name: Source(str(corpus.path), f"{corpus.kind}: {count}, {size} bytes", licence)}


def no_text(corpus: CorpusConfig, dropped: Mapping[str, int]) -> str:
    """What to say of a corpus of which nothing is left; ``dropped`` counts by rule."""
    rules = ", ".join(f"{rule.replace('_', ' ')} {count:,}" for rule, count in dropped.items())
    return f"corpus.path {corpus.path!r} holds no text: " + (
        f"all was dropped ({rules})" if rules else "every document is empty"
    )


def corpora_fingerprint(corpora: Mapping[str, CorpusConfig]) -> str:
    """Changes where a corpus changes: names, sizes and times of the files, or versions of the packages."""
    digest = hashlib.sha256()
    for name, corpus in corpora.items():
        for path in corpus_files(corpus):
            status = path.stat()
            digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
        if corpus.kind == "embedded":
            for source in corpus_sources(name, corpus).values():
                digest.update(f"{source.name} {source.version}\n".encode())
    return digest.hexdigest()
