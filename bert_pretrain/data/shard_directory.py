"""A directory of shards: its manifest, and the shards of each split."""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from bert_pretrain.data.shard_cache import PARTIAL, CacheConfig, RemoteFolder, add_folder, remote_folder
from bert_pretrain.data.shards import FORMAT_VERSION, RESTORE, ShardReader
from bert_pretrain.data.tokenizer_files import FILES
from bert_pretrain.errors import ConfigError
from bert_pretrain.files.addresses import Address, MissingError, is_address, read_all
from bert_pretrain.files.file_system import check_link, replace_file, require_writable
from bert_pretrain.files.retry import read_patiently

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
SPLITS = ("train", "heldout")
_SUFFIXES = (".hdf5", ".h5")
_NO_MANIFEST = (ValueError, KeyError, TypeError, RecursionError)  # what other content raises
_HELDOUT_NAME = re.compile(r"(^|[^a-z])(heldout|test(ing)?|val(id(ation)?)?|dev|eval(uation)?)([^a-z]|$)")


def shard_folder(given: str, cache: CacheConfig) -> Path:
    """The folder ``given``; of an address, one in the cache, into which its shards come when they are read.

    The manifest and the tokenizer are in it at once. Its name has a hash of the address and the manifest: shards that
    were made anew get another. Raises ``ConfigError``.
    """
    if not is_address(given):
        return Path(given)
    address = Address(given)
    if str(address) != given:
        raise ConfigError(
            f"data.dir is {address} with a user, password or query; give those in the environment, as its protocol "
            "reads them"
        )
    content = read_all(address / MANIFEST)
    digest = hashlib.sha256(f"{given.rstrip('/')}\n".encode() + content).hexdigest()
    folder = Path(cache.cache_dir).expanduser().absolute() / f"{address.name}-{digest[:12]}"
    require_writable(folder, "data.cache_dir")
    if not (folder / MANIFEST).exists():
        for name in FILES:
            try:
                found = read_all(address / TOKENIZER / name)
            except MissingError:
                continue
            (folder / TOKENIZER).mkdir(exist_ok=True)
            replace_file(folder / TOKENIZER / name, found)
        replace_file(folder / MANIFEST, content)
    manifest = read_manifest(folder)

    def check(path: Path) -> None:
        with closing(ShardReader(path)) as reader:
            check_listed(reader, manifest)
            reader.check_content(reader.header.vocab_size if reader.header else 1 << 31)

    add_folder(RemoteFolder(address, folder, int(cache.cache_gib * 2**30), check))
    return folder


def shard_paths(directory: Path, split: str) -> list[Path]:
    """The shards of one split, from the manifest, or else by name.

    Without a manifest a file is held out if its name contains a word such as ``test`` or ``validation``, as in the
    published pipeline. Raises ``ConfigError`` if the directory or a listed shard is missing.
    """
    check_link(directory, f"data.dir {directory}")
    if not directory.is_dir():
        raise ConfigError(f"data.dir is {str(directory)!r}, which is no directory; bert-pretrain prepare makes them")
    manifest = read_manifest(directory)
    if manifest is not None and remote_folder(directory) is None:
        missing = sorted({row["name"] for row in manifest["shards"] if row["split"] == split} - _names(directory))
        if missing:
            raise ConfigError(
                f"data.dir {directory}: {MANIFEST} lists {shortened(missing)}, which is not there; {RESTORE}"
            )
    if manifest is not None:
        return [directory / row["name"] for row in manifest["shards"] if row["split"] == split]
    found = _shards_in(directory)
    if not found:
        inside = [path for path in directory.iterdir() if path.is_dir()]
        folders = sorted(path.name for path in inside if (path / MANIFEST).exists() or _shards_in(path))
        advice = f"it holds the folders {', '.join(folders)}: give data.dir={directory / folders[0]}" if folders else ""
        raise ConfigError(
            f"data.dir {directory} holds no shards (*.hdf5, *.h5) and no {MANIFEST}; "
            f"{advice or 'bert-pretrain prepare makes them, or train without: data=pretokenised or data=streamed'}"
        )
    return [directory / name for name in found if _is_heldout(name) == (split == "heldout")]


def directory_notes(directory: Path) -> list[str]:
    """What a user may not expect: shards that are not used, or held out because of their names."""
    manifest = read_manifest(directory)
    found = _shards_in(directory)
    notes = []
    hidden = sorted(name for name in _names(directory) if name.startswith(".") and name.endswith(_SUFFIXES))
    if manifest is not None:
        found = unlisted(directory, manifest)
        if found:
            notes.append(f"data.dir {directory}: not used: {shortened(found)}, which {MANIFEST} does not list")
    else:
        held = [name for name in found if _is_heldout(name)]
        if held:
            notes.append(f"data.dir {directory} has no {MANIFEST}; held out by name: {shortened(held)}")
    if hidden:
        notes.append(f"data.dir {directory}: not used: {shortened(hidden)}, because of the dot at the beginning")
    return notes


def unlisted(directory: Path, manifest: dict[str, Any]) -> list[str]:
    """The names of the shards in ``directory`` that its manifest does not list."""
    return sorted(set(_shards_in(directory)) - {row["name"] for row in manifest["shards"]})


def check_listed(reader: ShardReader, manifest: dict[str, Any] | None) -> None:
    """Raise ``ConfigError`` if a shard is not the one that the manifest lists: other samples, checksum or split."""
    rows = {row["name"]: row for row in manifest["shards"]} if manifest else {}
    row = rows.get(reader.path.name.removesuffix(PARTIAL))
    header = reader.header
    if row is None:
        return
    if row["samples"] != reader.samples or row.get("checksum", reader.checksum) != reader.checksum:
        raise ConfigError(
            f"shard {reader.path}: {MANIFEST} lists {row['samples']} samples with checksum {row.get('checksum')}, the "
            f"file has {reader.samples} with {reader.checksum}: they are not from the same preparation; {RESTORE}"
        )
    if header is not None and row["split"] != header.split:
        raise ConfigError(
            f"shard {reader.path} is of split {header.split}; {MANIFEST} lists it as {row['split']}; {RESTORE}"
        )


def shortened(names: list[str]) -> str:
    """Up to three names, and how many there are besides."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _names(directory: Path) -> set[str]:
    """The names in ``directory``, of all files and folders."""
    return read_patiently(lambda: set(os.listdir(directory)), f"data.dir {directory}", RESTORE)


def _shards_in(directory: Path) -> list[str]:
    return sorted(name for name in _names(directory) if name.endswith(_SUFFIXES) and not name.startswith("."))


def _is_heldout(name: str) -> bool:
    return bool(_HELDOUT_NAME.search(name.lower()))


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest beside the shards, or None if there is none (a legacy directory). Raises ``ConfigError``."""
    if MANIFEST not in _names(directory):
        return None

    def read() -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        for row in manifest["shards"]:
            if not isinstance(row["name"], str) or row["split"] not in SPLITS or int(row["samples"]) < 0:
                raise ValueError(row)
        return manifest

    return read_patiently(read, str(directory / MANIFEST), RESTORE, (OSError, *_NO_MANIFEST))


def write_manifest(directory: Path, manifest: dict[str, Any]) -> None:
    """Write ``manifest.json``; it gets its name only when it is complete and on disk."""
    content = json.dumps({"format_version": FORMAT_VERSION, **manifest}, indent=2)
    replace_file(directory / MANIFEST, content.encode())


def data_fingerprint(shards: Iterable[tuple[str, int, str | None]]) -> str:
    """A hash of the training data: name, samples and checksum (legacy: None) of each shard, in order."""
    lines = (f"{name} {samples} {checksum}\n" for name, samples, checksum in shards)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
