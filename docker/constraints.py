"""Prints the pins of a lock file that an environment takes which has torch already, as constraints for pip.

    python docker/constraints.py requirements.lock

torch, and what was compiled against it, stay as they are; other packages that are installed are unconstrained, so that
pip keeps them if they serve. transformers and its companions are always taken from the lock.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

KEPT = {"torch", "triton", "numpy"}
FROM_LOCK = {"transformers", "tokenizers", "huggingface-hub", "datasets", "hydra-core", "omegaconf", "safetensors"}


def constraint(pin: str) -> str:
    """The constraint for the package of ``name==version``; empty for none."""
    name = re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower()
    try:
        installed = version(name)
    except PackageNotFoundError:
        return pin
    if name in KEPT:
        return f"{name}=={installed}"
    return pin if name in FROM_LOCK else ""


def main() -> None:
    """Print the constraints."""
    for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
        if "==" in line and not line.startswith("#") and (found := constraint(line)):
            print(found)


if __name__ == "__main__":
    main()
