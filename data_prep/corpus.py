"""What a corpus is: its options, its files, and what the manifest says of its source."""

import glob
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bert_pretrain.errors import ConfigError
from data_prep.options import CorpusConfig
from data_prep.sources.embedded import embedded_sources

COMPRESSIONS = ("", ".gz", ".bz2", ".xz", ".zst")
SUFFIXES = {
    "text": (".txt", ".text"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "parquet": (".parquet",),
    "wikipedia": (".xml",),
}


@dataclass(frozen=True)
class Source:
    """Where text comes from, for the manifest."""

    name: str
    version: str
    licence: str


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
