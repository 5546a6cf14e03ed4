"""Files that are replaced atomically, also through links; checks that files and directories can be written."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bert_pretrain.directories import check_directory, check_link
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
    with new_file(target) as temporary:
        temporary.write_bytes(content)
    fsync(target.parent)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; flushed to disk, it gets the name ``path`` if the block succeeds."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")  # two workers may run one task
    try:
        yield temporary
        fsync(temporary)
        temporary.rename(path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # of a write
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def open_to_umask(folder: Path) -> None:
    """Give the files of safetensors in ``folder`` the mode of any new file there.

    The library makes them readable by their owner only, whatever the umask says.
    """
    probe = folder / ".mode"  # os.umask would set it for all threads
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in folder.rglob("*.safetensors"):
        path.chmod(mode)


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """The JSON object in ``path``. Raises ``ConfigError`` with ``advice`` if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); {advice}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is damaged: no JSON object; {advice}")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """``replace_file`` with ``content`` as JSON."""
    replace_file(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


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


def check_new_file(path: Path, option: str, overwrite: bool) -> None:
    """Raise ``ConfigError`` if the file ``path``, the value of ``option``, cannot be written or may not be replaced."""
    if path.is_dir():
        raise ConfigError(f"{option} is {str(path)!r}, a directory; give the name of a file")
    if os.path.lexists(path) and not overwrite:
        raise ConfigError(f"{option} {path} exists; give another, or overwrite=true to replace it")
    require_writable(path.parent, f"the directory of {option},")


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
            check_link(path, f"{option} {path}")
        require_writable(target.parent, f"the directory of the target of {option}", "replace the link")
