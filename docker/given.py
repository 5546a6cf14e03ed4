"""The pins of a lock file that this Python has not got: ``python docker/given.py requirements.lock``.

What is installed stays: a container's torch, and what was built against it. transformers and those that come with it
are taken from the lock all the same.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FROM_LOCK = {"transformers", "tokenizers", "huggingface-hub", "datasets", "hydra-core", "omegaconf", "safetensors"}
NOT_HERE = re.compile(r"torch$|triton$|nvidia-|cuda-|mypy|ruff$|pytest|shellcheck|hadolint")


def wanted(line: str) -> bool:
    """Whether the pin ``name==version`` is to be installed."""
    name = re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower()
    if NOT_HERE.match(name):
        return False
    try:
        found = version(name)
    except PackageNotFoundError:
        return True
    return name in FROM_LOCK and found != line.strip().partition("==")[2]


def main() -> None:
    """Print the pins that are wanted."""
    for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
        if "==" in line and not line.startswith("#") and wanted(line):
            print(line)


if __name__ == "__main__":
    main()
