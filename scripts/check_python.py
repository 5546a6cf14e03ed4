"""Stop with one message if the Python version is not supported, before pip prints many."""

import sys

if not (3, 11) <= sys.version_info < (3, 14):
    version = ".".join(map(str, sys.version_info[:3]))
    sys.exit(f"error: PYTHON is {sys.executable} {version}; allowed: 3.11 to 3.13; use make PYTHON=python3.11")
