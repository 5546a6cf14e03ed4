"""Readers: what users have -> documents, each a list of paragraphs (or of finished sentences).

Text files in UTF-8, with or without a byte order mark, with any of the usual line ends; JSON lines; and the prose
that is installed with the packages (:mod:`data_prep.embedded`).
"""

import glob
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from bert_pretrain.errors import ConfigError, require
from data_prep.embedded import embedded_modules, embedded_sources

KINDS = ("embedded", "text", "jsonl")
SUFFIXES = {"text": (".txt", ".text"), "jsonl": (".jsonl", ".ndjson", ".json")}
BOUNDARIES = ("blank_line", "file")
LINES = ("wrapped", "paragraph", "sentence")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Source:
    """Where text comes from, for the manifest."""

    name: str
    version: str
    licence: str


@dataclass(frozen=True)
class Document:
    """One document: its name, the name of its source, and its paragraphs (or sentences) without line breaks."""

    name: str
    source: str
    paragraphs: list[str]
    split: bool = True  # False: the paragraphs are sentences already


@dataclass
class CorpusConfig:
    """One corpus. ``kind`` chooses the reader; the choices in ``configs/corpus/`` set and explain the rest."""

    kind: str
    path: str | None  # a file, a directory (searched with its sub-directories) or a glob pattern
    documents: str  # text: what ends a document, "blank_line" or "file"
    lines: str  # text: what a line is, part of a "wrapped" paragraph, a whole "paragraph", or a "sentence"
    text_field: str  # jsonl: the field that holds a document's text
    language: str  # for the sentence splitter, ISO 639-1
    licence: str | None  # of your text; recorded in the manifest
    drop_repeated_sentences: bool

    def __post_init__(self) -> None:
        require(self.kind in KINDS, "corpus.kind", self.kind, ", ".join(KINDS))
        require(self.documents in BOUNDARIES, "corpus.documents", self.documents, ", ".join(BOUNDARIES))
        require(self.lines in LINES, "corpus.lines", self.lines, ", ".join(LINES))
        if self.kind != "embedded" and not self.path:
            raise ConfigError(
                f"corpus.path is not set; corpus={self.kind} needs a file, a directory or a glob pattern, "
                "for example corpus.path=texts/"
            )


def corpus_files(corpus: CorpusConfig) -> list[Path]:
    """The files of a text or JSON lines corpus, sorted by name. Raises ``ConfigError`` where there are none."""
    if corpus.kind == "embedded":
        return []
    assert corpus.path is not None
    given = Path(corpus.path)
    suffixes = SUFFIXES[corpus.kind]
    if given.is_file():
        return [given]
    if given.is_dir():
        files = sorted(path for path in given.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
        wanted = f"files that end in {' or '.join(suffixes)}"
    else:
        files = sorted(Path(name) for name in glob.glob(corpus.path, recursive=True) if Path(name).is_file())
        wanted = "an existing file, a directory, or a glob pattern that matches files"
    if not files:
        raise ConfigError(f"corpus.path is {corpus.path!r}, where nothing was found; it takes {wanted}")
    return files


def read_documents(corpus: CorpusConfig, workers: int) -> Iterator[Document]:
    """Yield the documents of a corpus in a fixed order, with a progress bar.

    Empty documents are not yielded. Raises ``ConfigError``, with file and position, for what is not UTF-8 text or,
    in JSON lines, not an object with the text field.
    """
    if corpus.kind == "embedded":
        for name, source, paragraphs in embedded_modules(workers):
            yield Document(name, source, paragraphs)
        return
    files = corpus_files(corpus)
    read = _json_documents if corpus.kind == "jsonl" else _text_documents
    size = sum(path.stat().st_size for path in files)
    with tqdm(total=size, unit="B", unit_scale=True, desc="read", disable=None) as progress:
        for path in files:
            yield from read(path, corpus, progress)


def corpus_sources(corpus: CorpusConfig) -> dict[str, Source]:
    """The sources of a corpus by name."""
    if corpus.kind == "embedded":
        return {name: Source(name, version, licence) for name, (version, licence) in embedded_sources().items()}
    licence = corpus.licence or "not stated (corpus.licence)"
    return {path.name: Source(path.name, f"{path.stat().st_size} bytes", licence) for path in corpus_files(corpus)}


def corpus_fingerprint(corpus: CorpusConfig) -> str:
    """Changes where the corpus changes: names, sizes and times of the files, or versions of the packages."""
    digest = hashlib.sha256()
    for path in corpus_files(corpus):
        digest.update(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    if corpus.kind == "embedded":
        for source in corpus_sources(corpus).values():
            digest.update(f"{source.name} {source.version}\n".encode())
    return digest.hexdigest()


def _lines(path: Path, progress: tqdm) -> Iterator[tuple[int, str]]:
    """(line number, line without its end) of a UTF-8 file."""
    position = 0
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                yield number, _decode(raw, path, position)
                position += len(raw)
                progress.update(len(raw))
    except OSError as error:
        raise ConfigError(f"corpus file {path} cannot be read: {error}") from None


def _decode(raw: bytes, path: Path, position: int) -> str:
    start = len(_BYTE_ORDER_MARK) if position == 0 and raw.startswith(_BYTE_ORDER_MARK) else 0
    if b"\0" in raw:
        raise ConfigError(
            f"corpus file {path} holds a NUL byte at byte {position + raw.index(0)}: it is no UTF-8 text "
            "(UTF-16, or a binary file); convert it to UTF-8 or take it out of corpus.path"
        )
    try:
        return raw[start:].decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"corpus file {path} is not UTF-8 at byte {position + start + error.start} "
            f"(0x{error.object[error.start]:02x}, {error.reason}); convert it to UTF-8, for example with iconv"
        ) from None


def _text_documents(path: Path, corpus: CorpusConfig, progress: tqdm) -> Iterator[Document]:
    """Documents of one text file, by ``corpus.documents`` and ``corpus.lines``."""
    per_file = corpus.documents == "file"
    split = corpus.lines != "sentence"
    paragraphs: list[str] = []
    wrapped: list[str] = []
    count = 0
    for _, line in _lines(path, progress):
        for piece in line.split("\r"):  # the line ends of old Macs
            text = " ".join(piece.split())
            if text and corpus.lines == "wrapped":
                wrapped.append(text)
            elif text:
                paragraphs.append(text)
            elif wrapped:
                paragraphs.append(" ".join(wrapped))
                wrapped = []
            if not text and not per_file and paragraphs:
                yield Document(f"{path.name}#{count}", path.name, paragraphs, split)
                count += 1
                paragraphs = []
    if wrapped:
        paragraphs.append(" ".join(wrapped))
    if paragraphs:
        yield Document(f"{path.name}#{count}", path.name, paragraphs, split)


def _json_documents(path: Path, corpus: CorpusConfig, progress: tqdm) -> Iterator[Document]:
    """One document a line; blank lines in its text end a paragraph, single line ends are kept as such too."""
    for number, line in _lines(path, progress):
        if not line.strip():
            continue
        try:
            text = json.loads(line)[corpus.text_field]
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"corpus file {path}, line {number}: not JSON ({error.msg}, column {error.colno})"
            ) from None
        except (KeyError, TypeError, IndexError):
            raise ConfigError(
                f"corpus file {path}, line {number}: no field {corpus.text_field!r} (corpus.text_field)"
            ) from None
        if not isinstance(text, str):
            raise ConfigError(f"corpus file {path}, line {number}: field {corpus.text_field!r} is no string")
        paragraphs = [" ".join(paragraph.split()) for paragraph in text.splitlines()]
        paragraphs = [paragraph for paragraph in paragraphs if paragraph]
        if paragraphs:
            yield Document(f"{path.name}#{number}", path.name, paragraphs)
