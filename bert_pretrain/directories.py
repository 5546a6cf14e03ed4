"""Checks of the directories that options name, and folders that are replaced as a whole or not at all."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bert_pretrain.errors import ConfigError


def check_directory(path: Path, option: str, instead: str = "give another") -> None:
    """Raise ``ConfigError`` if ``path``, the value of ``option``, or a folder above it is a file or a dangling link."""
    for part in (path, *path.parents):
        if part.is_dir():
            return
        if os.path.lexists(part):
            where = f"{option} {path}" + ("" if part == path else f" cannot be made: {part}")
            check_link(part, where)
            raise ConfigError(f"{where} is a file, not a directory; {instead}")


def check_link(path: Path, where: str) -> None:
    """Raise ``ConfigError``, which begins with ``where``, if ``path`` is a link to a place that is not there."""
    if path.is_symlink() and not path.exists():
        raise ConfigError(
            f"{where} is a link to {path.readlink()}, which is not there; make it or mount its disk, or replace the "
            "link"
        )


def remove_tree(path: Path) -> None:
    """Remove a folder with its content, a file, or a link; what a link points to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_replaceable(out_dir: Path, overwrite: bool, marks: tuple[str, ...], kind: str) -> None:
    """Raise ``ConfigError`` unless ``out_dir`` is absent, or with ``overwrite`` an earlier folder of its kind.

    Such a folder holds one of ``marks``. Of a link, the link is replaced, not what it points to.
    """
    if not os.path.lexists(out_dir):
        return
    if out_dir.exists() and not out_dir.is_dir():
        raise ConfigError(f"out_dir {out_dir} is a file; give another")
    found, what = "exists", f"an earlier {kind}"
    if out_dir.is_symlink():
        found, what = f"is a link to {out_dir.readlink()}", "the link"
    if not overwrite:
        raise ConfigError(f"out_dir {out_dir} {found}; give another, or overwrite=true to replace {what}")
    if out_dir.exists() and any(out_dir.iterdir()) and not any((out_dir / mark).exists() for mark in marks):
        raise ConfigError(f"out_dir {out_dir} {found} and is no earlier {kind} (no {' or '.join(marks)}); give another")


@contextmanager
def new_folder(out_dir: Path) -> Iterator[Path]:
    """A path beside ``out_dir`` to write to; it gets the name ``out_dir`` if the block succeeds.

    A block that fails, SIGTERM or SIGHUP leave nothing of it and what was there before.
    """
    temporary, before = (out_dir.with_name(f".{out_dir.name}.{kind}") for kind in ("partial", "before"))
    remove_tree(temporary)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number in (number for number, handler in handlers.items() if handler != signal.SIG_IGN):  # nohup
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        yield temporary
        if out_dir.is_symlink():
            print(f"out_dir {out_dir} was a link to {out_dir.readlink()}, which is left as it is; the link is replaced")
            out_dir.unlink()
        elif out_dir.exists():
            remove_tree(before)
            out_dir.rename(before)
        temporary.rename(out_dir)
    finally:
        remove_tree(temporary)
        if before.exists() and not os.path.lexists(out_dir):
            before.rename(out_dir)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    remove_tree(before)
