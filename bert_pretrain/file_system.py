"""Files that are replaced at once, also through links, and directories that are tried by writing into them."""

import os
import tempfile
from pathlib import Path

from bert_pretrain.directories import check_directory
from bert_pretrain.errors import ConfigError, as_config_error


def fsync(*paths: Path) -> None:
    """Flush files, and the names in directories, to disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Write ``path`` so that after a crash it is there whole, or as it was. A link stays: its target is replaced."""
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.partial")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(target)
    fsync(target.parent)


def check_link(path: Path, option: str) -> None:
    """Raise ``ConfigError`` if ``path`` is a link to a place that is not there."""
    if path.is_symlink() and not path.exists():
        raise ConfigError(
            f"{option} {path} is a link to {os.readlink(path)}, which is not there; make it or mount its disk, or "
            "replace the link"
        )


def require_writable(path: Path, option: str, instead: str = "give another") -> None:
    """Create the directory ``path`` and write into it. Raises ``ConfigError`` with the advice ``instead``.

    A disk that does not answer is an ``OutageError``.
    """
    check_directory(path, option, instead)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(bytes(4096))
            file.flush()
    except OSError as error:
        raise type(as_config_error(error))(f"{option} {path} cannot be written ({error}); {instead}") from None


def check_file_writable(path: Path, option: str) -> None:
    """Raise ``ConfigError`` if the file ``path``, which may be a link or missing, cannot be written."""
    try:
        if path.exists():
            with open(path, "ab"):
                pass
    except OSError as error:
        raise type(as_config_error(error))(f"{option} {path} cannot be written ({error})") from None
    if path.is_symlink():
        target = Path(os.path.realpath(path))
        if not target.parent.is_dir():
            check_link(path, option)
        require_writable(target.parent, f"the directory of the target of {option}", "replace the link")
