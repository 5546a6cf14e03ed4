"""Directories that options name: links, files in their place, removal that follows no link."""

import os
import shutil
from pathlib import Path

from bert_pretrain.errors import ConfigError


def check_directory(path: Path, option: str, instead: str = "give another") -> None:
    """Raise ``ConfigError`` if ``path``, the value of ``option``, or a folder above it is a file or a dangling link."""
    for part in (path, *path.parents):
        if part.is_dir():
            return
        if os.path.lexists(part):
            found = f"a link to {part.readlink()}, which does not exist" if part.is_symlink() else "a file"
            where = f"{option} is {str(path)!r}, " + ("" if part == path else f"but {part} is ")
            raise ConfigError(f"{where}{'which is ' if part == path else ''}{found}, not a directory; {instead}")


def remove_tree(path: Path) -> None:
    """Remove a folder with its content, a file, or a link; what a link points to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
