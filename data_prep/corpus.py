"""The files of a corpus, its sources for the manifest, and a fingerprint of its content."""

import functools
import glob
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_pretrain.errors import ConfigError
from bert_pretrain.files.addresses import Address, find, is_address, without_secrets
from data_prep.options import CorpusConfig
from data_prep.sources.embedded import embedded_sources
from data_prep.sources.streams import LONGEST_LINE

COMPRESSIONS = ("", ".gz", ".bz2", ".xz", ".zst")
SUFFIXES = {
    "text": (".txt", ".text"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet",),
    "wikipedia": (".xml",),
}

_OPTION_OF_RULE = {
    "boilerplate": "cleaning.drop_boilerplate",
    "table_or_rule": "cleaning.prose_only",
    "fragment": "cleaning.min_words",
    "no_letters": "cleaning.prose_only",
    "figures": "cleaning.max_digit_share",
    "symbols": "cleaning.max_symbol_share",
    "short_document": "cleaning.min_document_words",
    "other_language": "language",
    "row_without_text": "text_field",
    "line_too_long": "documents",
}
"""The option to look at first, if a rule of :mod:`data_prep.sources.cleaning` dropped too much."""


def corpus_files(corpus: CorpusConfig) -> Sequence[Path | Address]:
    """The files of a corpus, sorted by name; none for embedded and dataset. Raises ``ConfigError`` if none match."""
    if corpus.kind in ("embedded", "dataset"):
        return []
    assert corpus.path is not None
    suffixes = tuple(suffix + compression for suffix in SUFFIXES[corpus.kind] for compression in COMPRESSIONS)
    if corpus.kind == "wikipedia":
        suffixes += (".bz2",)
    wanted = f"{' or '.join(SUFFIXES[corpus.kind])} files, also with {', '.join(COMPRESSIONS[1:])}"
    given = Path(corpus.path)
    files: Sequence[Path | Address]
    if is_address(corpus.path):
        files = _remote_files(corpus.path, suffixes)
    elif given.is_file():
        files = [given]
    elif given.is_dir():
        files = [path for path in files_under(given) if path.name.lower().endswith(suffixes)]
    else:
        files = sorted(Path(name) for name in glob.glob(corpus.path, recursive=True) if Path(name).is_file())
        wanted = "a file, a directory or a glob pattern"
    if not files:
        raise ConfigError(f"corpus.path is {without_secrets(corpus.path)!r}, where nothing was found; give {wanted}")
    return [path if isinstance(path, Address) else path.absolute() for path in files]


@functools.lru_cache
def _remote_files(address: str, suffixes: tuple[str, ...]) -> list[Address]:
    """What ``find`` finds, once a process."""
    return find(Address(address), lambda name: name.lower().endswith(suffixes))


def file_size(path: Path | Address) -> int:
    """Bytes of one of :func:`corpus_files`."""
    return path.size or 0 if isinstance(path, Address) else path.stat().st_size


def files_under(folder: Path) -> list[Path]:
    """All files in ``folder`` and its folders, sorted, but for hidden ones. Links are followed, each folder once."""
    found, seen = [], {os.path.realpath(folder)}
    for place, folders, names in os.walk(folder, followlinks=True):
        fresh = []
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(place, name))
            if not name.startswith(".") and real not in seen:
                seen.add(real)
                fresh.append(name)
        folders[:] = fresh
        found += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.is_file())


def corpus_sources(name: str, corpus: CorpusConfig) -> dict[str, dict[str, str]]:
    """Name, version and licence of each source of a corpus: the packages of corpus=embedded, else the corpus itself."""
    if corpus.kind == "embedded":
        return {
            key: {"name": key, "version": version, "licence": licence}
            for key, (version, licence) in embedded_sources().items()
        }
    licence = corpus.licence or "not stated (corpus.licence)"
    if corpus.kind == "dataset":
        version = f"{corpus.subset or 'default'}, {corpus.split}"
    else:
        files = corpus_files(corpus)
        count = f"{len(files)} files" if len(files) > 1 else files[0].name
        version = f"{corpus.kind}: {count}, {sum(map(file_size, files))} bytes"
    return {name: {"name": without_secrets(str(corpus.path)), "version": version, "licence": licence}}


def no_text(corpus: CorpusConfig, dropped: Mapping[str, int]) -> str:
    """The error message for a corpus without text. ``dropped``: counts by rule."""
    names = {"line_too_long": f"line of more than {LONGEST_LINE:,} bytes"}
    rules = ", ".join(f"{names.get(rule, rule.replace('_', ' '))} {count:,}" for rule, count in dropped.items())
    reason = f"all was dropped ({rules})" if rules else "every document is empty"
    options = [f"corpus.{_OPTION_OF_RULE[rule]}" for rule in dropped if rule in _OPTION_OF_RULE]
    advice = f"; see {', '.join(dict.fromkeys(options))} (cleaning@corpus.cleaning=off: no rules)" if options else ""
    return f"corpus.path {without_secrets(str(corpus.path))!r} holds no text: {reason}{advice}"


def warn_of_losses(counts: Mapping[str, Any]) -> list[str]:
    """A line about rows and lines that could not be read. ``counts``: of the text stage."""
    unread = {
        "bad_row": "broken rows (corpus.bad_rows)",
        "line_too_long": f"lines of more than {LONGEST_LINE:,} bytes, which are not read; divide them",
    }
    return [
        f"left out: {counts['dropped'][rule]:,} {what}; the first: {counts['dropped_samples'][rule][0]}"
        for rule, what in unread.items()
        if rule in counts["dropped"]
    ]


def corpora_fingerprint(corpora: Mapping[str, CorpusConfig]) -> str:
    """A hash of the names, sizes and modification times of all files, or of the versions of the packages."""
    digest = hashlib.sha256()
    for name, corpus in corpora.items():
        for path in corpus_files(corpus):
            version = path.version if isinstance(path, Address) else path.stat().st_mtime_ns
            digest.update(f"{path} {file_size(path)} {version}\n".encode(errors="surrogateescape"))
        if corpus.kind == "embedded":
            for source in corpus_sources(name, corpus).values():
                digest.update(f"{source['name']} {source['version']}\n".encode())
    return digest.hexdigest()
