"""Kills or stops a run at random moments and restarts it; the result must equal that of an uninterrupted run.

    python scripts/prove_kills.py kill 100 2026 kills.json      # SIGKILL to a random rank, 100 times
    python scripts/prove_kills.py stop 20 77 stops.json         # SIGTERM to a random rank, 20 times

Two ranks with gradient accumulation, a tiny model with dropout, a checkpoint every few steps; a third of the signals
are sent while a checkpoint is being written. Beside every fifth start a second process is started on the same
directory, which must be refused and change nothing. The ranks are forked from this process, which has imported all:
a hundred starts of Python would take hours. After each signal the newest valid checkpoint must not be older than
before. After a stop both ranks must exit with status 75. At the end the weights must equal those of the uninterrupted
run bit for bit, and so must the rows of metrics.jsonl except for times.
"""

import os
import random
import re
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import repository_root  # noqa: F401  makes bert_pretrain importable
from results_file import argument_parser, write_result
from safetensors.torch import load_file

from bert_pretrain import pretrain
from bert_pretrain.checkpoint.files import find_fault
from bert_pretrain.checkpoint.find import newest_valid
from bert_pretrain.checkpoint.store import load_progress
from bert_pretrain.errors import EXIT_MISTAKE, EXIT_STOPPED
from tests.conftest import TEST_RECIPE, make_shards, metric_rows

CHECKPOINT_STEPS = 7
"""Steps between two checkpoints; so few that many signals arrive while one is being written."""
SECOND_SHARE = 0.2
"""Share of the starts beside which a second process is started."""
STEPS_PER_SIGNAL = 30
"""So that the run does not end before the last signal."""
MAX_DELAY = 0.6
"""Longest delay in seconds between the first new step and the signal, unless it waits for a checkpoint."""


def options(run_dir: Path, data: Path, steps: int) -> list[str]:
    """The options of the run, each time the same."""
    return [
        *TEST_RECIPE, f"data.dir={data}", f"run_dir={run_dir}", f"schedule.total_steps={steps}",
        f"checkpoint.every_steps={CHECKPOINT_STEPS}", "training.evaluate_every_steps=50",
        "model.hidden_dropout_prob=0.1", "precision.compute=fp32", "batch.micro_batch_size=2",
    ]  # fmt: skip


def start(words: list[str], log: Path) -> list[int]:
    """Start the run; the process ids of its two ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    sizes = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return [fork({"RANK": str(rank), "LOCAL_RANK": str(rank), **sizes, **place}, words, log) for rank in range(2)]


def fork(variables: dict[str, str], words: list[str], log: Path) -> int:
    """Fork one process with these environment variables; its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.environ.update(variables)
        pretrain.main(words)
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def wait(ranks: list[int]) -> list[int]:
    """The exit statuses of the ranks. If one fails, the other gets SIGTERM, as from torchrun, and later SIGKILL."""
    statuses: dict[int, int] = {}
    deadline = time.monotonic() + 3600
    while len(statuses) < len(ranks):
        for rank in set(ranks) - statuses.keys():
            done, status = os.waitpid(rank, os.WNOHANG)
            if not done:
                continue
            statuses[rank] = os.waitstatus_to_exitcode(status)
            if statuses[rank] not in (0, EXIT_STOPPED):
                signal_all(set(ranks) - statuses.keys(), signal.SIGTERM)
                deadline = min(deadline, time.monotonic() + 3)
        if time.monotonic() > deadline:
            signal_all(set(ranks) - statuses.keys(), signal.SIGKILL)
        time.sleep(0.005)
    return [statuses[rank] for rank in ranks]


def signal_all(ranks: set[int], number: signal.Signals) -> None:
    """Send a signal to processes that have not been reaped."""
    for rank in ranks:
        os.kill(rank, number)


def newest(run_dir: Path) -> int:
    """The step of the newest valid checkpoint; 0 if there is none."""
    found = newest_valid(run_dir / "checkpoints", lambda _: None)
    return 0 if found is None else load_progress(found).step


def lines(run_dir: Path) -> int:
    """Number of rows that the run has logged so far."""
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def is_saving(run_dir: Path) -> bool:
    """Whether a checkpoint is being written."""
    return bool(list((run_dir / "checkpoints").glob(".*.partial")))


def refused(words: list[str], log: Path) -> bool:
    """Start a second process on a directory in use; whether it was refused for that."""
    log.unlink(missing_ok=True)
    _, status = os.waitpid(fork({}, words, log), 0)
    return os.waitstatus_to_exitcode(status) == EXIT_MISTAKE and "is in use by process" in log.read_text()


def interrupt(words: list[str], run_dir: Path, number: signal.Signals, rng: random.Random) -> dict[str, Any]:
    """Start, wait for a random moment and send the signal to a random rank; the state before and after."""
    ranks, beside = start(words, Path(f"{run_dir}.log")), rng.random() < SECOND_SHARE
    started, first = time.monotonic(), lines(run_dir)
    during_save, delay, target = rng.random() < 1 / 3, rng.random(), rng.choice(ranks)
    while lines(run_dir) == first and time.monotonic() < started + 60:  # a resumed run first drops rows, then adds some
        first = min(first, lines(run_dir))
        time.sleep(0.005)
    second = refused(words, Path(f"{run_dir}.second.log")) if beside else None
    if during_save:
        end = time.monotonic() + 10
        while not is_saving(run_dir) and time.monotonic() < end:
            time.sleep(0.0005)
        time.sleep(0.05 * delay)
    else:
        time.sleep(MAX_DELAY * delay)
    saving, valid = is_saving(run_dir), newest(run_dir)
    was_running = os.waitpid(target, os.WNOHANG)[0] == 0
    if was_running:
        os.kill(target, number)
    saving = saving and is_saving(run_dir)
    row = {"while_saving": saving, "rank": ranks.index(target), "valid_before": valid, "statuses": wait(ranks)}
    after = {"at_step": lines(run_dir), "valid_after": newest(run_dir)}
    return row | after | {"was_running": was_running, "second_refused": second}


def run_to_the_end(words: list[str], log: Path) -> None:
    """Start the run, which must finish."""
    assert wait(start(words, log)) == [0, 0], log.read_text()[-3000:]


def prove(kind: str, signals: int, seed: int, work: Path) -> tuple[list[dict[str, Any]], dict[str, bool]]:
    """Run without and with interruptions; one row per signal, and the result of each check."""
    rng = random.Random(seed)
    steps = STEPS_PER_SIGNAL * signals
    data = make_shards(work / "data")
    reference, interrupted = work / "reference", work / "interrupted"
    assert wait(start(options(reference, data, steps), Path(f"{reference}.log"))) == [0, 0], Path(
        f"{reference}.log"
    ).read_text()[-3000:]
    found: list[dict[str, Any]] = []
    words = options(interrupted, data, steps)
    number = signal.SIGKILL if kind == "kill" else signal.SIGTERM
    while len(found) < signals:
        row = interrupt(words, interrupted, number, rng)
        found.append({"signal": len(found) + 1, **row})
        print(found[-1], flush=True)
        if not row["was_running"]:
            break
    last = newest(interrupted)
    run_to_the_end(words, Path(f"{interrupted}.log"))
    final = f"checkpoints/step_{steps:08d}"
    expected, got = (load_file(path / final / "model/model.safetensors") for path in (reference, interrupted))
    valid = find_fault(interrupted / final) is None
    checks = {
        "all signals sent before the end": len(found) == signals and all(row["was_running"] for row in found),
        "weights equal bit for bit": all(bool((expected[name] == got[name]).all()) for name in expected),
        "rows equal": metric_rows(reference) == metric_rows(interrupted),
        "no valid checkpoint lost": all(row["valid_after"] >= row["valid_before"] for row in found),
        "second processes refused": all(row["second_refused"] is not False for row in found),
        "none damaged": valid and not list((interrupted / "checkpoints").glob("*damaged*")),
    }
    if kind == "stop":
        messages = re.findall(r"^stopped.* step \d+", Path(f"{interrupted}.log").read_text(), re.M)
        stopped = all(row["statuses"] == [EXIT_STOPPED] * 2 for row in found)
        checks["status 75 on both ranks, one message"] = stopped and len(messages) == signals
    print(f"step {last} of {steps} after the last signal; {checks}")
    return found, checks


def main() -> None:
    """Interrupt, compare, write the result."""
    parser = argument_parser(__doc__)
    parser.add_argument("kind", choices=("kill", "stop"))
    parser.add_argument("signals", type=int, help="number of interruptions")
    parser.add_argument("seed", type=int)
    parser.add_argument("result", type=Path, help="JSON file to write")
    given = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="prove_kills.") as folder:
        found, checks = prove(given.kind, given.signals, given.seed, Path(folder))
    note = f"Seed {given.seed}; {time.perf_counter() - started:.0f} s in all. "
    note += "; ".join(f"{what}: {'yes' if passed else 'NO'}" for what, passed in checks.items())
    outcomes = Counter((row["rank"], row["while_saving"], str(row["statuses"]), row["second_refused"]) for row in found)
    table = [
        {
            "signal to rank": rank,
            "while a checkpoint was written": saving,
            "statuses": statuses,
            "second process": {None: "none", True: "refused", False: "NOT REFUSED"}[second],
            "signals": count,
        }
        for (rank, saving, statuses, second), count in sorted(outcomes.items(), key=str)
    ]
    name = {"kill": "SIGKILL", "stop": "SIGTERM"}[given.kind]
    write_result(given.result, f"{name} to a random rank at random moments, then the same command", table, note)
    sys.exit(not all(checks.values()))


if __name__ == "__main__":
    main()
