"""Which version of the program runs: a commit or a release."""

import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@cache
def program_version() -> str:
    """The commit of the checkout that this file is in, ``-dirty`` if files differ; of an installed package, its
    version.

    A package that is installed below another project's checkout is no file of that checkout.
    """
    here = Path(__file__)
    try:
        if _git(here, "ls-files", "--error-unmatch", here.name):
            return _git(here, "describe", "--always", "--dirty", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):  # no git, or no checkout
        pass
    try:
        return version("bert-pretrain")
    except PackageNotFoundError:
        return "unknown"


def _git(file: Path, *words: str) -> str:
    command = ["git", "-C", str(file.parent), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
