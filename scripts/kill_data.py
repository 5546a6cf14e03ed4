"""Kill a preparation at random moments and start it again: the shards are those of the run that was never stopped.

    python scripts/kill_data.py SCRATCH_DIR RESULT.json OPTION...

OPTIONs are those of data_prep.prepare but for out_dir and engine.workers. Three runs: one worker, four workers, and
four workers with a SIGKILL to the whole process group at five random moments (fixed seed), started again each time. A
moment is a number of finished parts and a part of a second after it, so that a slow start is never all that is killed.
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
    """The command, in a process group of its own."""
    command = [sys.executable, "-m", "data_prep.prepare", f"out_dir={out_dir}", f"engine.workers={workers}", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finish(process: subprocess.Popen) -> str:
    """What it printed. Raises ``RuntimeError`` where it failed."""
    out, error = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(error[-2000:])
    return out


def hashes(out_dir: Path) -> dict[str, str]:
    """SHA-256 of every shard and tokenizer file."""
    files = sorted([*out_dir.rglob("*.hdf5"), *out_dir.glob("tokenizer/*")])
    return {str(path.relative_to(out_dir)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def parts_done(out_dir: Path) -> int:
    """Finished parts of all stages."""
    return len(list(out_dir.rglob("*.done.json")))


def main() -> None:
    """Run, kill, compare, and write down what happened."""
    scratch, result, options = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    rng = random.Random(SEED)
    finish(start(scratch / "one", 1, options))
    finish(start(scratch / "four", 4, options))
    killed = scratch / "killed"
    moments = sorted(rng.sample(range(1, parts_done(scratch / "one")), KILLS))
    kills: list[dict[str, float]] = []
    for parts in moments:
        begin = time.perf_counter()
        process = start(killed, 4, options)
        while parts_done(killed) < parts and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))
        if process.poll() is not None:
            raise RuntimeError(f"it ended before it could be killed at part {parts}")
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        seconds = round(time.perf_counter() - begin, 2)
        kills.append({"wanted_parts": parts, "parts_done": parts_done(killed), "after_seconds": seconds})
    finish(start(killed, 4, options))
    expected = hashes(scratch / "one")
    equal = {"four workers": hashes(scratch / "four") == expected, "killed": hashes(killed) == expected}
    note = f"{len(expected)} files equal: {equal}. Options: {options}."
    write_result(result, "SIGKILL and restart: byte-identical shards with 1 and 4 workers and after kills", kills, note)
    sys.exit(not all(equal.values()))


if __name__ == "__main__":
    main()
