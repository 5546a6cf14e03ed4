"""Writes one file of measured results, in the format that ``write_results.py`` reads; the arguments of scripts."""

import argparse
import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import repository_root  # noqa: F401  makes bert_pretrain importable

from bert_pretrain.program import commit


def argument_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the module docstring ``doc``."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def write_result(
    path: Path, what: str, rows: list[dict[str, Any]], note: str = "", command: str | None = None, **more: Any
) -> None:
    """Write flat ``rows`` with date, machine, commit and command (default: this script's); print them."""
    script = f"python scripts/{Path(sys.argv[0]).name} {shlex.join(map(without_folders, sys.argv[1:]))}"
    result = {
        "what": what,
        "date": time.strftime("%Y-%m-%d"),
        "device": f"{os.cpu_count()}-core {platform.machine()}, shared with other work",
        "commit": commit(),
        "command": command or script.strip(),
        "rows": rows,
        **({"note": note} if note else {}),
        **more,
    }
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def without_folders(word: str) -> str:
    """``word`` with only the last part of a path, in ``option=path`` too."""
    option, equals, value = word.rpartition("=")
    return f"{option}{equals}{Path(value).name}"
