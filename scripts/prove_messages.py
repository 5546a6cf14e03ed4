"""Type mistakes at ``bert-pretrain``, each in a process of its own: what they get, after how many seconds.

    python scripts/prove_messages.py

Also how long the commands that train nothing take to start, and how much memory. Writes scripts/results/.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import repository_root  # noqa: F401  makes bert_pretrain importable
from results_file import write_result

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.bert_pretrain.test_command import MISTAKES  # noqa: E402

STARTS = (
    "--help",
    "recipes ls",
    "plan recipe=demo",
    "plan recipe=bert_large_64k_phase1 devices=8 gpu=h100",
    "verify dir=none",
    "report run_dir=none",
    "data-report dir=none",
    "pretrain --help",
)


def timed(line: str, folder: str) -> dict[str, object]:
    """Run ``bert-pretrain`` with the words of ``line``: its status, last line of error, seconds and megabytes."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "bert_pretrain.cli", *line.split(" ")]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT), "PATH": ""}
    )
    seconds = round(time.perf_counter() - started, 2)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024  # of the largest child so far
    message = done.stderr.strip()
    print(f"{seconds:5.2f} s  status {done.returncode}  bert-pretrain {line}\n         {message}", flush=True)
    return {"command": line, "status": done.returncode, "seconds": seconds, "message": message, "peak_mb": peak}


def main() -> None:
    """Run all, print and write."""
    with tempfile.TemporaryDirectory() as folder:
        starts = [timed(line, folder) for line in STARTS]
        mistakes = [timed(line, folder) for line, _ in MISTAKES]
    longest = max(float(str(row["seconds"])) for row in mistakes)
    path = ROOT / "scripts/results" / f"cpu_{time.strftime('%Y-%m-%d')}_messages.json"
    what = f"{len(mistakes)} mistakes typed at the command, and the start of commands that train nothing"
    write_result(path, what, [*starts, *mistakes], f"The slowest of the mistakes took {longest} s.")


if __name__ == "__main__":
    main()
