"""A directory of shards: its manifest, and the shards of each split."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from bert_pretrain.data.shards import FORMAT_VERSION, ShardReader
from bert_pretrain.errors import ConfigError

MANIFEST = "manifest.json"
SPLITS = ("train", "heldout")
_HELDOUT_NAME = re.compile(r"(^|[^a-z])(heldout|test)([^a-z]|$)")


def shard_paths(directory: Path, split: str) -> list[Path]:
    """The shards of one split, from the manifest, or else by name.

    Without a manifest a file is held out if its name contains ``heldout`` or ``test``, as in the published pipeline.
    Raises ``ConfigError`` if the directory or a listed shard is missing.
    """
    if not directory.is_dir():
        raise ConfigError(f"data.dir is {str(directory)!r}, which is no directory; bert-pretrain prepare makes them")
    manifest = read_manifest(directory)
    if manifest is not None:
        paths = [directory / row["name"] for row in manifest["shards"] if row["split"] == split]
        missing = [path.name for path in paths if not path.exists()]
        if missing:
            raise ConfigError(f"data.dir {directory}: {MANIFEST} lists {', '.join(missing)}, which is not there")
        return paths
    found = sorted(path for path in directory.iterdir() if path.suffix in {".hdf5", ".h5"})
    if not found:
        raise ConfigError(
            f"data.dir {directory} holds no shards (*.hdf5, *.h5) and no {MANIFEST}; bert-pretrain prepare makes them"
        )
    return [path for path in found if bool(_HELDOUT_NAME.search(path.name)) == (split == "heldout")]


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest beside the shards, or None if there is none (a legacy directory)."""
    path = directory / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        for row in manifest["shards"]:
            if not isinstance(row["name"], str) or row["split"] not in SPLITS or int(row["samples"]) < 0:
                raise ValueError(row)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as a manifest ({error!r}); write the shards again") from None
    return manifest


def write_manifest(directory: Path, manifest: dict[str, Any]) -> None:
    """Write ``manifest.json``; it gets its name only when it is complete and on disk."""
    temporary = directory / f".{MANIFEST}.partial"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump({"format_version": FORMAT_VERSION, **manifest}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(directory / MANIFEST)


def data_fingerprint(readers: list[ShardReader]) -> str:
    """A hash of the training data: names, counts and checksums (legacy: counts only) in order."""
    digest = hashlib.sha256()
    for reader in readers:
        digest.update(f"{reader.path.name} {reader.samples} {reader.checksum}\n".encode())
    return digest.hexdigest()
