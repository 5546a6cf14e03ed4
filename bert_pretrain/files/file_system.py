"""Files and folders that are replaced as a whole or not at all; checks of the paths that options name."""

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
