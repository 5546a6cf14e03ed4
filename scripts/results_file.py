"""One file of measured results in the form that ``write_results.py`` reads."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def write_result(
    path: Path, what: str, rows: list[dict[str, Any]], note: str = "", command: str | None = None, **more: Any
) -> None:
    """Write flat ``rows`` with the date, the machine, the commit and the command, or those given; print them."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    python = f"python scripts/{Path(sys.argv[0]).name} {shlex.join(Path(a).name for a in sys.argv[1:])}"
    result = {
        "what": what,
        "date": time.strftime("%Y-%m-%d"),
        "device": f"{os.cpu_count()}-core {platform.machine()}, shared with other work",
        "commit": commit.strip(),
        "command": command or python.strip(),
        "rows": rows,
        **({"note": note} if note else {}),
        **more,
    }
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
