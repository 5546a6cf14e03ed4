"""Which program this is: its version and its commit."""

import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).parent
WRITTEN = HERE / "COMMIT"
"""In a wheel: the commit that it was built from (``hatch_build.py``). A checkout has no such file."""


def release() -> str:
    """The version of the installed package; ``unknown`` where only its files are there."""
    try:
        return version("bert-pretrain")
    except PackageNotFoundError:
        return "unknown"


@cache
def commit(here: Path = HERE) -> str:
    """The short commit of this program, with ``-dirty`` if a tracked file differs from it; empty if unknown.

    An installed package may lie in another project's checkout: git is asked only if it tracks this package.
    """
    if WRITTEN.exists():
        return WRITTEN.read_text(encoding="utf-8").strip()
    if _git(here, "ls-files", "--error-unmatch", "__init__.py"):
        return _git(here, "describe", "--always", "--dirty", "--exclude=*")
    return ""


def program_version() -> str:
    """The commit, or the release of an installed package that has none."""
    return commit() or release()


def version_line() -> str:
    """``bert-pretrain 0.2.0 (commit 0123abc)``."""
    known = commit()
    return f"bert-pretrain {release()}" + (f" (commit {known})" if known else "")


def _git(folder: Path, *words: str) -> str:
    """What git prints; empty if it fails or is not there."""
    command = ["git", "-C", str(folder), *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
