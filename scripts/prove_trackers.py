"""A run with all four trackers, whose mlflow server first blocks and then dies.

    python scripts/prove_trackers.py RESULT.json

Needs the extras wandb, tensorboard, mlflow and trackio. A third of the way through the run the server is suspended, so
that requests get no answer; after two thirds it is killed. The same run without trackers goes on beside it, under the
same load of the machine. Compares the time of a step in the three parts: by the clock, less what the training thread
waited for a core in the kernel's queue. Then starts the server again, gives the same command again, which sends what
mlflow lacks, and reads all values back from each tracker by its own library. Takes some minutes.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import repository_root  # noqa: F401  makes bert_pretrain importable
from random_shards import write_random_shards
from results_file import argument_parser, write_result

from bert_pretrain.trackers.choice import TRACKERS
from bert_pretrain.trackers.tracker import TrackedRun, stored_id
from bert_pretrain.training.metrics import read_rows
from tests.bert_pretrain.trackers.test_libraries import READERS, expected

VOCABULARY, LENGTH, THIRD, SKIPPED = 2000, 64, 120, 20
PARTS = [(third * THIRD + SKIPPED, (third + 1) * THIRD - SKIPPED) for third in range(3)]
"""First and last of the steps that are compared in each third."""
PROJECT = "proof"


def start_server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Start ``mlflow server``; returns when it answers."""
    store = [f"--backend-store-uri=sqlite:///{folder}/mlflow.db", f"--artifacts-destination={folder}/artifacts"]
    words = [sys.executable, "-m", "mlflow", "server", *store, f"--port={port}", "--workers=1"]
    with open(folder / "server.log", "ab") as log:
        server = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
    for _ in range(240):
        time.sleep(0.5)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return server
        except OSError:
            continue
    sys.exit(f"FAILED: mlflow server does not answer:\n{(folder / 'server.log').read_text()}")


def send_signal(server: subprocess.Popen[bytes], number: int) -> None:
    """To the server and its workers."""
    os.killpg(server.pid, number)


def run(words: list[str], log: Path, at: dict[int, Callable[[int], None]]) -> str:
    """Run the command, and call what ``at`` has for a step, with the process id, once it is logged; what it printed."""
    metrics = [Path(word.partition("=")[2]) for word in words if word.startswith("run_dir=")][-1] / "metrics.jsonl"
    with open(log, "wb") as file:
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None:
            time.sleep(0.05)
            end = metrics.read_bytes()[-20_000:] if at and metrics.exists() else b""
            seen = re.findall(rb'^{"step": (\d+),', end, re.MULTILINE)
            for step in [step for step in at if seen and int(seen[-1]) >= step]:
                at.pop(step)(process.pid)
    if process.returncode or at:
        sys.exit(f"FAILED: status {process.returncode}, not seen: steps {[*at]}\n{log.read_text()}")
    return log.read_text()


def clock(pid: int) -> float:
    """Seconds by the clock, less those that the main thread of ``pid`` was ready to run and had no core."""
    waited = int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[1])
    return time.monotonic() - waited / 1e9


def timed(words: list[str], log: Path, at: dict[int, Callable[[int], None]]) -> tuple[str, list[float]]:
    """``run``, and the milliseconds of a step in each part."""
    marks: dict[int, float] = {}

    def mark(step: int, pid: int) -> None:
        marks[step] = clock(pid)

    printed = run(words, log, {step: partial(mark, step) for part in PARTS for step in part} | at)
    return printed, [1000 * (marks[last] - marks[first]) / (last - first) for first, last in PARTS]


def main() -> None:
    """Run, disturb, repair, read back."""
    parser = argument_parser(__doc__)
    parser.add_argument("result", type=Path, help="JSON file to write")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="prove_trackers.") as folder:
        place = Path(folder)
        os.environ.update(TRACKIO_DIR=str(place / "trackio"), WANDB_SILENT="true")
        write_random_shards(place / "shards", VOCABULARY, LENGTH, 4096)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = start_server(place, port)
        uri, run_dir = f"http://127.0.0.1:{port}", place / "run"
        words = [
            sys.executable, "-m", "bert_pretrain.pretrain", "recipe=demo", f"data.dir={place / 'shards'}",
            f"data.sequence_length={LENGTH}", f"model.vocab_size={VOCABULARY}", f"run_dir={run_dir}", "device=cpu",
            f"schedule.total_steps={3 * THIRD}", "batch.global_batch_size=32", "logging.every_steps=1",
            "logging.layers_every_steps=50", "checkpoint.every_steps=150", f"logging.project={PROJECT}",
            f"logging.trackers=[{','.join(TRACKERS)}]", "logging.wandb=offline", f"logging.mlflow_uri={uri}",
        ]  # fmt: skip
        disturb = {
            THIRD: lambda _: send_signal(server, signal.SIGSTOP),
            2 * THIRD: lambda _: send_signal(server, signal.SIGKILL),
        }
        alone = [*words, f"run_dir={place / 'alone'}", "logging.trackers=[]", "logging.wandb=null"]
        with ThreadPoolExecutor(2) as both:
            tracked_run = both.submit(timed, words, place / "run.log", disturb)
            _, without = both.submit(timed, alone, place / "alone.log", {}).result()
        printed, times = tracked_run.result()
        said = [line for line in printed.splitlines() if line.startswith("mlflow")]
        server = start_server(place, port)
        again = run(words, place / "again.log", {})
        rows = read_rows(run_dir / "metrics.jsonl")
        tracked = TrackedRun(run_dir, PROJECT, {}, "offline", uri, stored_id(run_dir))
        wrong = [name for name in TRACKERS if not equal(READERS[name](tracked), expected(rows, name))]
        send_signal(server, signal.SIGKILL)
    if wrong or len(said) != 2 or "lacks" in again:
        sys.exit(f"FAILED: other values in {wrong}; said:\n" + "\n".join([*said, again]))
    states = ("answers", "gives no answer", "is dead")
    found = [
        {"mlflow's server": state, "steps": f"{first} to {last}", "ms for a step": round(taken, 1), "without trackers":
         round(other, 1), "ratio": round(taken / other, 3)}
        for state, (first, last), taken, other in zip(states, PARTS, times, without, strict=True)
    ]  # fmt: skip
    values = sum(len(points) for points in expected(rows, "wandb").values())
    note = f"Printed: {'; '.join(line.replace(uri, 'URI') for line in said)}. The same command, with the server there "
    note += f"again, sent them: all {values:,} values are those of metrics.jsonl in {', '.join(TRACKERS)}."
    write_result(given.result, "A run with four trackers, one of which blocks and then dies", found, note)


def equal(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether a tracker has all values, each once; what is sent late comes in another order."""
    return all(sorted(found.get(name, [])) == sorted(points) for name, points in wanted.items())


if __name__ == "__main__":
    main()
