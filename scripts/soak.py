"""Soak test: the resident memory, open files and threads of a long run must not grow.

    python scripts/soak.py 60 soak.json recipe=demo run_dir=runs/soak schedule.total_steps=400000

Choose short intervals of evaluations, checkpoints and metrics, so that each happens often. Samples once a second; a
row of the table is a tenth of the time. The test passes if in the second half of the time the median memory is at most
2 % above that of the first half, and files and threads are not above theirs; the first tenth, the warm-up, is ignored.
The run ends when its options say so, or is sent SIGTERM after MINUTES.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from results_file import argument_parser, write_result

TENTHS = 10
GROWTH = 1.02
Sample = tuple[float, float, int, int]
"""Minutes since the start, resident MB, open files, threads."""


def watch(process: psutil.Popen, minutes: float) -> list[Sample]:
    """One sample per second until the process exits or the time is over."""
    start, samples = time.monotonic(), []
    while process.poll() is None and time.monotonic() - start < 60 * minutes:
        with process.oneshot():
            resident = process.memory_info().rss / 1e6
            samples.append(((time.monotonic() - start) / 60, resident, process.num_fds(), process.num_threads()))
        time.sleep(1)
    return samples


def summary(number: int, samples: list[Sample]) -> dict[str, Any]:
    """A row of the table: one tenth of the samples."""
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
    """What grew, in words."""
    before, after = rows[1 : TENTHS // 2], rows[TENTHS // 2 :]
    found = []
    for name in ("resident MB, median", "open files, most", "threads, most"):
        first, last = (max(row[name] for row in part) for part in (before, after))
        if last > first * (GROWTH if "MB" in name else 1):
            found.append(f"{name}: {first} and then {last}")
    return found


def main() -> None:
    """Run, watch, write the result; exit with 1 if something grew."""
    parser = argument_parser(__doc__)
    parser.add_argument("minutes", type=float)
    parser.add_argument("result", type=Path, help="JSON file to write")
    parser.add_argument("options", nargs="*", metavar="option", help="options of bert-pretrain pretrain")
    given = parser.parse_args()
    process = psutil.Popen([sys.executable, "-m", "bert_pretrain.pretrain", *given.options], stdout=subprocess.DEVNULL)
    samples = watch(process, given.minutes)
    if process.poll() is None:
        process.terminate()
    status = process.wait()
    rows = [summary(number, samples) for number in range(TENTHS)]
    fault = grown(rows)
    note = f"Exit status {status}. " + ("Grown: " + "; ".join(fault) if fault else "Nothing grew.")
    write_result(given.result, "Soak test: memory, open files and threads of a long run", rows, note)
    sys.exit(bool(fault))


if __name__ == "__main__":
    main()
