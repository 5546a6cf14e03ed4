"""The output directory: which options own it, what an interrupted run left in it. Nothing foreign is overwritten."""

import json
import shutil
from pathlib import Path
from typing import Any

from bert_pretrain.data.shard_directory import MANIFEST, read_manifest
from bert_pretrain.errors import ConfigError
from bert_pretrain.files.directory_lock import LOCK
from bert_pretrain.files.file_system import check_directory, new_file, read_json

_OPTIONS = "options.json"  # in out_dir/corpus: the options of the run that created the directory
CORPUS = "corpus"
_NEW_OPTIONS = {"mask_share": 0.8, "random_share": 0.1, "alphabet_coverage": 0.9995, "strip_accents": None}
_NEW_CORPUS_OPTIONS = {"bad_rows": 0.01, "rule": None}
"""Options that preparations of earlier versions do not state, and what is nearest to what those did."""
CORPUS_OPTIONS = ("corpus", "mix", "fingerprint", "rule_hashes")
"""The options that say which text it is."""
_INTERMEDIATE = ("cut", "samples", "scatter")


def shard_dirs(out_dir: Path, sequence_lengths: list[int]) -> list[Path]:
    """The folder of each length's shards: ``out_dir`` itself, or with several lengths ``out_dir/LENGTH``."""
    return [out_dir] if len(sequence_lengths) == 1 else [out_dir / str(length) for length in sequence_lengths]


def check_out_dir(out_dir: Path, folders: list[Path], options: dict[str, Any]) -> bool:
    """Whether all ``folders`` (:func:`shard_dirs`) hold finished shards made with these options.

    Raises ``ConfigError`` if ``out_dir`` is no directory, or holds files made with other options or by other programs.
    """
    check_directory(out_dir, "out_dir")
    if not out_dir.exists():
        return False
    finished = finished_manifests(folders)
    for folder, manifest in finished.items():
        check_options(manifest.get("options"), options, f"out_dir {folder} holds finished shards ({MANIFEST})")
    if len(finished) == len(folders):
        return True
    if check_unfinished(out_dir / CORPUS, options, f"out_dir {out_dir} holds an unfinished preparation"):
        return False
    foreign = sorted(path.name for path in out_dir.iterdir() if not path.name.startswith(LOCK))
    if foreign:
        raise ConfigError(
            f"out_dir {out_dir} is not empty ({foreign[0]}{', ...' if len(foreign) > 1 else ''}) and was not made by "
            "this program; nothing was changed: choose another directory"
        )
    return False


def finished_manifests(folders: list[Path]) -> dict[Path, dict[str, Any]]:
    """The manifests of the folders that have one. Raises ``ConfigError`` if a shard that it lists is not there."""
    found = {folder: read_manifest(folder) for folder in folders if folder.is_dir()}
    finished = {folder: manifest for folder, manifest in found.items() if manifest is not None}
    for folder, manifest in finished.items():
        missing = [row["name"] for row in manifest["shards"] if not (folder / row["name"]).exists()]
        if missing:
            raise ConfigError(
                f"out_dir {folder}: {MANIFEST} lists {', '.join(missing)}, which is not there; "
                "restore it from a copy, or choose another out_dir"
            )
    return finished


def check_unfinished(corpus_dir: Path, options: dict[str, Any], where: str) -> bool:
    """Whether a preparation was begun in ``corpus_dir``. Raises ``ConfigError`` if it had other options."""
    owner = corpus_dir / _OPTIONS
    if owner.exists():
        check_options(read_record(owner), options, f"{where} ({owner})")
    return owner.exists()


def check_options(found: dict[str, Any] | None, wanted: dict[str, Any], where: str) -> None:
    """Raise ``ConfigError`` if a preparation was made with options ``found`` and not ``wanted``."""
    found = _NEW_OPTIONS | (found or {})
    found["corpus"] = _NEW_CORPUS_OPTIONS | found.get("corpus", {})
    found["mix"] = {name: _NEW_CORPUS_OPTIONS | corpus for name, corpus in found.get("mix", {}).items()}
    other = _differences(found, json.loads(json.dumps(wanted)), "")
    if other:
        raise ConfigError(
            f"{where} made with other options: {'; '.join(other[:4])}; nothing was changed: "
            "choose another out_dir, or give the same options"
        )


def _differences(found: dict[str, Any], wanted: dict[str, Any], prefix: str) -> list[str]:
    lines = []
    for name in sorted(found.keys() | wanted.keys()):
        have, want = found.get(name), wanted.get(name)
        if isinstance(have, dict) and isinstance(want, dict):
            lines += _differences(have, want, f"{prefix}{name}.")
        elif have != want and name == "fingerprint":
            lines.append("the corpus itself (its files, or the installed packages) has changed since")
        elif have != want:
            lines.append(f"{prefix}{name} was {have!r}, now {want!r}")
    return lines


def claim_out_dir(corpus_dir: Path, options: dict[str, Any]) -> bool:
    """Create the directory and record the options in it; True if it is new. Raises ``ConfigError`` if it cannot."""
    owner = corpus_dir / _OPTIONS
    if owner.exists():
        return False
    try:
        owner.parent.mkdir(parents=True, exist_ok=True)
        write_record(owner, options)
    except OSError as error:
        raise ConfigError(f"out_dir {corpus_dir} cannot be written ({error}); choose another directory") from None
    return True


def release_out_dir(out_dir: Path) -> None:
    """Undo :func:`claim_out_dir` after a run that failed before its first shard."""
    if not any(out_dir.rglob("*.hdf5")):
        for name in (CORPUS, "tokenizer"):
            shutil.rmtree(out_dir / name, ignore_errors=True)


def remove_intermediate(corpus_dir: Path) -> None:
    """Remove the files that only the shards were made from. Sentences, token ids and task records are kept."""
    for folder in corpus_dir.iterdir():
        if folder.name.split("_")[0] in _INTERMEDIATE:
            shutil.rmtree(folder, ignore_errors=True)


def stage_path(corpus_dir: Path, stage: str) -> Path:
    """The record of a finished stage."""
    return corpus_dir / f"{stage.replace(' ', '_')}.done.json"


def read_record(path: Path) -> dict[str, Any]:
    """What :func:`write_record` wrote. Raises ``ConfigError`` if it cannot be read."""
    return read_json(path, "restore it from a copy, or choose another out_dir")


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write the counts of a task or stage, or the options, as JSON; whole or not at all."""
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2), encoding="utf-8")
