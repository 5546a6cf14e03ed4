"""What a user may not expect of the files of corpora: refused, or said."""

import glob
import os
from collections.abc import Mapping
from pathlib import Path

from bert_pretrain.errors import ConfigError
from bert_pretrain.files.addresses import Address
from data_prep.corpus import corpus_files
from data_prep.options import CorpusConfig

_TEXT_KINDS = ("text", "jsonl", "csv")  # the suffixes of these are those of files that prepare writes


def check_corpora(corpora: Mapping[str, CorpusConfig], out_dir: Path | None = None) -> list[str]:
    """Lines about hidden files and dangling links, which are not read.

    Raises ``ConfigError`` if a file would be read twice, ``out_dir`` lies where the text is looked for, or the language
    is none that the language filter knows.
    """
    owners: dict[str, tuple[str, Path | Address]] = {}
    notes = []
    for name, corpus in corpora.items():
        if corpus.cleaning.language_filter:
            _check_language(corpus.language)
        if out_dir is not None:
            _check_out_dir(corpus, out_dir)
        for path in corpus_files(corpus):
            other, first = owners.setdefault(
                str(path) if isinstance(path, Address) else os.path.realpath(path), (name, path)
            )
            if first != path or other != name:
                where = f"corpora {other} and {name} both hold" if other != name else f"corpus.path {corpus.path} holds"
                raise ConfigError(
                    f"{where} the file {first}" + (f", also as {path}" if first != path else "") + "; give every file "
                    "once: the weight of a corpus says how often its text is used"
                )
        notes += _not_read(corpus)
    return notes


def _check_language(language: str) -> None:
    from py3langid.langid import set_languages  # slow to load

    try:
        set_languages([language])
    except ValueError:
        raise ConfigError(
            f"corpus.language is {language!r}, which corpus.cleaning.language_filter cannot tell from others, so that "
            "all would be dropped; set corpus.cleaning.language_filter=false"
        ) from None
    set_languages(None)


def _check_out_dir(corpus: CorpusConfig, out_dir: Path) -> None:
    if corpus.kind not in _TEXT_KINDS or corpus.path is None:
        return
    path = Path(corpus.path)
    pattern = glob.escape(corpus.path) != corpus.path and not Path(corpus.path).exists()
    if pattern:
        if "**" not in corpus.path:
            return
        fixed = corpus.path[: min(corpus.path.find(mark) for mark in "*?[" if mark in corpus.path)]
        path = Path(fixed if fixed.endswith("/") else os.path.dirname(fixed) or ".")
    if path.is_dir() and Path(os.path.realpath(out_dir)).is_relative_to(os.path.realpath(path)):
        raise ConfigError(
            f"out_dir {out_dir} lies within corpus.path {corpus.path}, so that its own files would be read as text; "
            "give an out_dir outside"
        )


def _not_read(corpus: CorpusConfig) -> list[str]:
    """A line each about hidden files and about links that lead nowhere."""
    folder = Path(corpus.path or "")
    if corpus.kind in ("embedded", "dataset") or not folder.is_dir():
        return []
    hidden, dangling = [], []
    for place, folders, names in os.walk(folder):
        hidden += [os.path.join(place, name) for name in (*folders, *names) if name.startswith(".")]
        dangling += [path for name in names if not os.path.exists(path := os.path.join(place, name))]
        folders[:] = [name for name in folders if not name.startswith(".")]
    lines = {"the name begins with a dot": sorted(hidden), "the link leads nowhere": sorted(dangling)}
    return [
        f"corpus.path {folder}: {len(found)} not read, because {reason}: {found[0]}{', ...' if len(found) > 1 else ''}"
        for reason, found in lines.items()
        if found
    ]
