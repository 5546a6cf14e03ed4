"""Prints the pins of a lock file that this Python lacks.

    python docker/given.py requirements.lock

Installed packages are kept: the container's torch, and what was built against it. transformers and its companions are
always taken from the lock.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FROM_LOCK = {"transformers", "tokenizers", "huggingface-hub", "datasets", "hydra-core", "omegaconf", "safetensors"}
EXCLUDED = re.compile(r"torch$|triton$|nvidia-|cuda-|mypy|ruff$|pytest|shellcheck|hadolint")


def wanted(line: str) -> bool:
    """Whether to install the pin ``name==version``."""
    name = re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower()
    if EXCLUDED.match(name):
        return False
    try:
        found = version(name)
    except PackageNotFoundError:
        return True
    return name in FROM_LOCK and found != line.strip().partition("==")[2]


def main() -> None:
    """Print the pins to install."""
    for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
        if "==" in line and not line.startswith("#") and wanted(line):
            print(line)


if __name__ == "__main__":
    main()
