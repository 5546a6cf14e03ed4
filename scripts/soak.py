"""A long run watched from outside: resident memory, open files and threads must stay flat.

    python scripts/soak.py MINUTES RESULT.json OPTION...

OPTIONs are those of bert_pretrain.pretrain. Evaluations, checkpoints in the background and metrics should fall often
into the time: set their intervals so. Looks every second; a row of the table is a tenth of the time. Flat means: over
the last half of the time the median of the memory is at most 2 % above that of the half before it but for the first
tenth, in which a run warms up, and likewise no more files and threads. The run ends as its options say, or with a
SIGTERM when the time is over.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from results_file import write_result

TENTHS = 10
GROWTH = 1.02
Sample = tuple[float, float, int, int]
"""Minutes since the start, resident MB, open files, threads."""


def watch(process: psutil.Popen, minutes: float) -> list[Sample]:
    """A sample a second until the process ends or the time is over."""
    start, samples = time.monotonic(), []
    while process.poll() is None and time.monotonic() - start < 60 * minutes:
        with process.oneshot():
            resident = process.memory_info().rss / 1e6
            samples.append(((time.monotonic() - start) / 60, resident, process.num_fds(), process.num_threads()))
        time.sleep(1)
    return samples


def tenth(number: int, samples: list[Sample]) -> dict[str, Any]:
    """A row of the table."""
    size = len(samples) // TENTHS
    part = samples[number * size : (number + 1) * size]
    resident = [sample[1] for sample in part]
    return {
        "to minute": round(part[-1][0], 1),
        "resident MB, median": round(statistics.median(resident), 1),
        "resident MB, most": round(max(resident), 1),
        "open files, most": max(sample[2] for sample in part),
        "threads, most": max(sample[3] for sample in part),
    }


def grown(rows: list[dict[str, Any]]) -> list[str]:
    """What is not flat, in words."""
    before, after = rows[1 : TENTHS // 2], rows[TENTHS // 2 :]
    found = []
    for name in ("resident MB, median", "open files, most", "threads, most"):
        first, last = (max(row[name] for row in part) for part in (before, after))
        if last > first * (GROWTH if "MB" in name else 1):
            found.append(f"{name}: {first} and then {last}")
    return found


def main() -> None:
    """Run, watch, write down; status 1 where something grew."""
    minutes, result, options = float(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    process = psutil.Popen([sys.executable, "-m", "bert_pretrain.pretrain", *options], stdout=subprocess.DEVNULL)
    samples = watch(process, minutes)
    if process.poll() is None:
        process.terminate()
    status = process.wait()
    rows = [tenth(number, samples) for number in range(TENTHS)]
    fault = grown(rows)
    note = f"Ended with status {status}. " + ("Not flat: " + "; ".join(fault) if fault else "Flat.")
    write_result(result, "A long run: memory, open files and threads", rows, note)
    sys.exit(bool(fault))


if __name__ == "__main__":
    main()
