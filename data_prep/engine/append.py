"""Appending to a finished set of shards: what is known of it, and how the new shards become part of it.

The stages of the n-th append write to ``out_dir/corpus/append_000n`` what those of the set itself have written to
``out_dir/corpus``, and the new shards to ``new/`` in there: until all are whole, the set is as it was. Then
``commit.json`` gets the grown manifests, the shards are moved beside the old ones, and the manifests are replaced. The
next append first finishes one that was killed in between.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_pretrain.data.shard_directory import MANIFEST, shortened, unlisted, write_manifest
from bert_pretrain.errors import ConfigError
from bert_pretrain.files.file_system import fsync
from data_prep.engine.manifest import grown_manifest
from data_prep.engine.out_dir import (
    CORPUS,
    CORPUS_OPTIONS,
    check_options,
    check_unfinished,
    finished_manifests,
    read_record,
    write_record,
)
from data_prep.samples.tokenizer import load_vocabulary
from data_prep.text.duplicates import TextPart, numbered_parts

_COMMIT = "commit.json"


@dataclass(frozen=True)
class Earlier:
    """What a set holds before the preparation in ``corpus_dir``: nothing, or what came before an append."""

    corpus_dir: Path
    """Where the stages write."""
    number: int = 0
    """Of the append, from 1 on; 0: the set itself is made."""
    parts: tuple[TextPart, ...] = ()
    repeats: Path | None = None
    """The folder of the repeated documents, by their numbers over all ``parts``."""
    manifests: tuple[dict[str, Any], ...] = ()
    """Of each sequence length."""

    @property
    def corpora(self) -> list[str]:
        """The names of the corpora in the shards, by number."""
        return list(self.manifests[0].get("corpora", ["corpus"])) if self.manifests else []

    @property
    def stages(self) -> list[dict[str, Any]]:
        """What was counted."""
        return list(self.manifests[0]["stages"]) if self.manifests else []

    def shards(self, length: int) -> list[dict[str, Any]]:
        """The rows of the shards of one sequence length."""
        return [row for found in self.manifests if found["sequence_length"] == length for row in found["shards"]]

    def folder_of(self, folder: Path, length: int) -> Path:
        """Where the new shards of one sequence length are written, which belong into ``folder``."""
        return self.corpus_dir / "new" / str(length) if self.number else folder

    def counts(self, length: int) -> list[Path]:
        """The counts of masked words in all training shards of one sequence length."""
        folders = _corpus_dirs(self.corpus_dir.parent, self.number - 1) if self.number else []
        return _counts([*folders, self.corpus_dir], length)


def check_out_dir_of_append(out_dir: Path, folders: list[Path]) -> None:
    """Raise ``ConfigError`` if there are no finished shards in all ``folders``, one of each sequence length."""
    if len(finished_manifests(folders)) < len(folders):
        raise ConfigError(
            f"append is true, but out_dir {out_dir} holds no finished shards ({MANIFEST}) of these sequence_lengths; "
            "append to a set that bert-pretrain prepare has finished, or make one without append"
        )


def open_set(out_dir: Path, folders: list[Path], options: dict[str, Any]) -> Earlier | None:
    """The finished set in ``out_dir``, to append to; None if it holds the text of ``options`` already.

    ``folders``: of each sequence length. Raises ``ConfigError`` if the set was made with other options or lacks what
    was kept to know its documents, or if another append has not come to its end.
    """
    for commit in sorted((out_dir / CORPUS).glob(f"append_*/{_COMMIT}")):
        _finish_append(out_dir, commit.parent)
    finished = finished_manifests(folders)
    for folder, found in finished.items():
        before = found["options"]
        now = {name: value for name, value in options.items() if name not in CORPUS_OPTIONS}
        same = {name: before[name] for name in CORPUS_OPTIONS if name in before}
        check_options(before, now | same, f"append is true, and out_dir {folder} holds shards ({MANIFEST})")
        extra = unlisted(folder, found)
        if extra:
            raise ConfigError(
                f"out_dir {folder} holds {shortened(extra)}, which {MANIFEST} does not list; move what belongs to "
                "another preparation elsewhere"
            )
    manifests = tuple(finished.values())
    mine = _corpus_options(options)
    appended = manifests[0].get("appended", [])
    if mine in (_corpus_options(manifests[0]["options"]), *appended):
        return None
    tokenizer = load_vocabulary(out_dir / "tokenizer").tokenizer_hash
    if tokenizer != manifests[0]["tokenizer"]["tokenizer_hash"]:
        raise ConfigError(
            f"{out_dir / 'tokenizer'} is not the tokenizer that the shards in {out_dir} were made with ({MANIFEST}); "
            "restore it from a copy"
        )
    number = len(appended) + 1
    *earlier, corpus_dir = _corpus_dirs(out_dir / CORPUS, number)
    parts = _known_parts(earlier)
    _check_kept(parts, earlier, manifests)
    check_unfinished(corpus_dir, options, f"out_dir {out_dir} holds an append that has not come to its end")
    return Earlier(corpus_dir, number, parts, earlier[-1] / "repeats", manifests)


def _corpus_options(options: dict[str, Any]) -> dict[str, Any]:
    """What says which text it is, as read back from JSON."""
    return {name: options[name] for name in CORPUS_OPTIONS if name in options}


def _corpus_dirs(corpus_dir: Path, appends: int) -> list[Path]:
    """The folders of the set and of its first ``appends`` appends."""
    return [corpus_dir, *(corpus_dir / f"append_{number:04d}" for number in range(1, appends + 1))]


def _counts(folders: list[Path], length: int) -> list[Path]:
    return [path for folder in folders for path in sorted(folder.glob(f"shards_{length}/train_*.npy"))]


def _known_parts(folders: list[Path]) -> tuple[TextPart, ...]:
    """The text parts of the set, numbered as when they were made."""
    records = [path for folder in folders for path in sorted((folder / "text").glob("*.done.json"))]
    texts = [path.with_name(path.name.replace(".done.json", ".txt")) for path in records]
    return tuple(numbered_parts((text, "", read_record(path)) for text, path in zip(texts, records, strict=True)))


def _check_kept(parts: tuple[TextPart, ...], folders: list[Path], manifests: tuple[dict[str, Any], ...]) -> None:
    """Raise ``ConfigError`` if not all is there that a preparation keeps for appends."""
    stages = manifests[0]["stages"]
    documents = sum(stage["documents"] for stage in stages if stage["stage"].split(" (")[0] == "text")
    kept = documents == sum(part.documents for part in parts) and (folders[-1] / "repeats/repeated.npy").exists()
    kept = kept and all(part.keys.exists() for part in parts)
    for manifest in manifests:
        shards = sum(row["split"] == "train" for row in manifest["shards"])
        kept = kept and len(_counts(folders, manifest["sequence_length"])) == shards
    if not kept:
        raise ConfigError(
            f"append is true, but {folders[0]} lacks what is kept to know the {documents:,} documents of the set: an "
            "earlier version made it, or files were removed; prepare all the text anew, into another out_dir"
        )


def append_shards(out_dir: Path, folders: list[Path], earlier: Earlier, new: list[dict[str, Any]]) -> None:
    """Make the shards of ``new``, the manifests of the append alone, part of the set: of all lengths, or of none."""
    corpora = _corpus_options(new[0]["options"])
    grown = [
        grown_manifest(before, manifest, earlier.number, corpora)
        for before, manifest in zip(earlier.manifests, new, strict=True)
    ]
    names = [str(folder.relative_to(out_dir)) for folder in folders]
    write_record(earlier.corpus_dir / _COMMIT, dict(zip(names, grown, strict=True)))
    _finish_append(out_dir, earlier.corpus_dir)


def _finish_append(out_dir: Path, corpus_dir: Path) -> None:
    """Move the shards of an append beside those of the set, and replace the manifests; done once or more often."""
    for name, manifest in read_record(corpus_dir / _COMMIT).items():
        folder = out_dir / name
        for path in sorted((corpus_dir / "new" / str(manifest["sequence_length"])).glob("*.hdf5")):
            path.rename(folder / path.name)
        fsync(folder)
        write_manifest(folder, manifest)
    (corpus_dir / _COMMIT).unlink()
    shutil.rmtree(corpus_dir / "new", ignore_errors=True)


def discard_append(earlier: Earlier) -> None:
    """Remove the files of an append that has added nothing, unless it has begun to."""
    if (earlier.corpus_dir / _COMMIT).exists():
        return
    aside = earlier.corpus_dir.with_name(f".{earlier.corpus_dir.name}")
    shutil.rmtree(aside, ignore_errors=True)
    earlier.corpus_dir.rename(aside)  # at once, so that no part of it is taken for one of another append
    shutil.rmtree(aside, ignore_errors=True)
