"""Kill a preparation at random times and restart it: its shards are equal to those of an uninterrupted run.

    python scripts/kill_data.py SCRATCH_DIR RESULT.json OPTION...

OPTIONs are those of ``bert-pretrain prepare`` except out_dir and engine.workers. Three runs: one worker, four workers,
and four workers with SIGKILL to the whole process group at five random times (fixed seed), restarted each time. A time
is a number of finished tasks plus a fraction of a second, so that kills are not all during start-up.
"""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from results_file import write_result

KILLS, SEED = 5, 2024


def start(out_dir: Path, workers: int, options: list[str]) -> subprocess.Popen:
    """Start the command in a new process group."""
    command = [sys.executable, "-m", "data_prep.prepare", f"out_dir={out_dir}", f"engine.workers={workers}", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finish(process: subprocess.Popen) -> None:
    """Wait for the command. Raises ``RuntimeError`` if it failed."""
    _, error = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(error[-2000:])


def hashes(out_dir: Path) -> dict[str, str]:
    """SHA-256 of every shard and tokenizer file."""
    files = sorted([*out_dir.rglob("*.hdf5"), *out_dir.glob("tokenizer/*")])
    return {str(path.relative_to(out_dir)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def tasks_done(out_dir: Path) -> int:
    """Finished tasks of all stages."""
    return len(list(out_dir.rglob("*.done.json")))


def main() -> None:
    """Run, kill, compare, and write the results."""
    scratch, result, options = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    rng = random.Random(SEED)
    finish(start(scratch / "one", 1, options))
    finish(start(scratch / "four", 4, options))
    killed = scratch / "killed"
    times = sorted(rng.sample(range(1, tasks_done(scratch / "one")), KILLS))
    kills: list[dict[str, float]] = []
    for tasks in times:
        begin = time.perf_counter()
        process = start(killed, 4, options)
        while tasks_done(killed) < tasks and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))
        if process.poll() is not None:
            raise RuntimeError(f"it finished before it could be killed at task {tasks}")
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        seconds = round(time.perf_counter() - begin, 2)
        kills.append({"wanted_parts": tasks, "parts_done": tasks_done(killed), "after_seconds": seconds})
    finish(start(killed, 4, options))
    expected = hashes(scratch / "one")
    equal = {"four workers": hashes(scratch / "four") == expected, "killed": hashes(killed) == expected}
    note = f"{len(expected)} files equal: {equal}. Options: {options}."
    write_result(result, "SIGKILL and restart: equal bytes with 1 and 4 workers and after kills", kills, note)
    sys.exit(not all(equal.values()))


if __name__ == "__main__":
    main()
