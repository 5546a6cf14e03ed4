"""Kill a run at random moments, or ask it to stop; started again, it is the run that nobody disturbed.

    python scripts/prove_kills.py kill 100 SEED RESULT.json      # SIGKILL to a random rank
    python scripts/prove_kills.py stop 20 SEED RESULT.json       # SIGTERM to a random rank

Two ranks with accumulation, a tiny model with dropout, a checkpoint every few steps; every third blow falls while one
is being written. The ranks are processes of their own, forked from this one, which has imported everything: else a
hundred starts of Python would take hours. After each blow the newest checkpoint that was ever seen whole must still be
there or have a newer one; after a stop both ranks must end with status 75 and have saved where they stopped. In the
end the weights must be those of the undisturbed run bit for bit, and the rows of metrics.jsonl the same but for times.
"""

import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from results_file import write_result
from safetensors.torch import load_file

from bert_pretrain import pretrain
from bert_pretrain.checkpoint.files import find_fault
from bert_pretrain.checkpoint.store import CheckpointStore, load_progress
from bert_pretrain.distributed.preemption import EXIT_STOPPED
from tests.conftest import TEST_RECIPE, make_shards

TIMED = ("tokens_per_second", "mfu", "matrix_peak_share", "data_wait_share")
EVERY = 7
"""Steps between two checkpoints: so near that many blows fall into one being written."""
LIFE = 0.6
"""A blow falls at most so many seconds after the first new step, or while a checkpoint is written."""


def start(run_dir: Path, data: Path, steps: int) -> list[int]:
    """The command, always the same but for the meeting place; the process ids of its two ranks."""
    options = [
        *TEST_RECIPE, f"data.dir={data}", f"run_dir={run_dir}", f"schedule.total_steps={steps}",
        f"checkpoint.every_steps={EVERY}", "training.evaluate_every_steps=50", "model.hidden_dropout_prob=0.1",
        "precision.compute=fp32", "batch.micro_batch_size=2",
    ]  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    return [rank_of_two(rank, place, options, Path(f"{run_dir}.log")) for rank in range(2)]


def rank_of_two(rank: int, place: dict[str, str], options: list[str], log: Path) -> int:
    """Fork one rank; its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        here = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", **place}
        os.environ.update(here)
        pretrain.main(options)
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def wait(ranks: list[int]) -> list[int]:
    """The statuses of the ranks; where one ends badly the other is sent SIGTERM, as torchrun does, and then killed."""
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
    """Send a signal to processes that have not been waited for."""
    for rank in ranks:
        os.kill(rank, number)


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of ``metrics.jsonl`` without their times."""
    found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMED} for row in found]


def newest(run_dir: Path) -> int:
    """The step of the newest valid checkpoint; 0 where there is none."""
    found = CheckpointStore(run_dir / "checkpoints", 1, None).newest_valid(lambda _: None)
    return 0 if found is None else load_progress(found).step


def lines(run_dir: Path) -> int:
    """Rows that the run has logged so far."""
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def is_saving(run_dir: Path) -> bool:
    """Whether a checkpoint is being written."""
    return bool(list((run_dir / "checkpoints").glob(".*.partial")))


def strike(ranks: list[int], run_dir: Path, number: signal.Signals, rng: random.Random) -> dict[str, Any]:
    """Wait for a random moment and send the signal to a random rank; what was seen."""
    begun, first = time.monotonic(), lines(run_dir)
    aimed, pause, victim = rng.random() < 1 / 3, rng.random(), rng.choice(ranks)
    while lines(run_dir) == first and time.monotonic() < begun + 60:  # a start drops rows, and then there are new ones
        first = min(first, lines(run_dir))
        time.sleep(0.005)
    if aimed:
        end = time.monotonic() + 10
        while not is_saving(run_dir) and time.monotonic() < end:
            time.sleep(0.0005)
        time.sleep(0.05 * pause)
    else:
        time.sleep(LIFE * pause)
    writing, whole = is_saving(run_dir), newest(run_dir)
    struck = os.waitpid(victim, os.WNOHANG)[0] == 0
    if struck:
        os.kill(victim, number)
    writing = writing and is_saving(run_dir)
    return {"while_saving": writing, "rank": ranks.index(victim), "whole_before": whole, "statuses": wait(ranks),
            "at_step": lines(run_dir), "whole_after": newest(run_dir), "struck": struck}  # fmt: skip


def prove(kind: str, blows: int, seed: int, work: Path) -> tuple[list[dict[str, Any]], dict[str, bool]]:
    """Undisturbed and disturbed runs; a row a blow, and what holds."""
    rng = random.Random(seed)
    steps = 25 * blows
    data = make_shards(work / "data")
    undisturbed, disturbed = work / "undisturbed", work / "disturbed"
    assert wait(start(undisturbed, data, steps)) == [0, 0], Path(f"{undisturbed}.log").read_text()[-3000:]
    found: list[dict[str, Any]] = []
    number = signal.SIGKILL if kind == "kill" else signal.SIGTERM
    while len(found) < blows:
        row = strike(start(disturbed, data, steps), disturbed, number, rng)
        found.append({"blow": len(found) + 1, **row})
        print(found[-1], flush=True)
        if not row["struck"]:
            break
    left = newest(disturbed)
    assert wait(start(disturbed, data, steps)) == [0, 0], Path(f"{disturbed}.log").read_text()[-3000:]
    final = f"checkpoints/step_{steps:08d}"
    expected, got = (load_file(path / final / "model/model.safetensors") for path in (undisturbed, disturbed))
    whole = find_fault(disturbed / final) is None
    holds = {
        "all blows struck before the end": len(found) == blows and all(row["struck"] for row in found),
        "weights bitwise": all(bool((expected[name] == got[name]).all()) for name in expected),
        "rows equal": rows(undisturbed) == rows(disturbed),
        "no valid checkpoint lost": all(row["whole_after"] >= row["whole_before"] for row in found),
        "none damaged": whole and not list((disturbed / "checkpoints").glob("*damaged*")),
    }
    if kind == "stop":
        once = Path(f"{disturbed}.log").read_text().count("stopped as asked after step") == blows
        holds["status 75 on both ranks, said once"] = once and all(
            row["statuses"] == [EXIT_STOPPED] * 2 for row in found
        )
    print(f"the last blow left step {left} of {steps}; {holds}")
    return found, holds


def main() -> None:
    """Strike, compare, write down."""
    kind, blows, seed, result = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="prove_kills.") as folder:
        found, holds = prove(kind, blows, seed, Path(folder))
    note = f"Seed {seed}; {time.perf_counter() - begun:.0f} s in all. "
    note += "; ".join(f"{what}: {'yes' if held else 'NO'}" for what, held in holds.items())
    outcomes = Counter((row["rank"], row["while_saving"], str(row["statuses"])) for row in found)
    rows = [
        {"signal to rank": rank, "while a checkpoint was written": saving, "statuses": statuses, "blows": blows}
        for (rank, saving, statuses), blows in sorted(outcomes.items())
    ]
    what = {"kill": "SIGKILL to a random rank at random moments, then the same command", "stop": "SIGTERM likewise"}
    write_result(result, what[kind], rows, note)
    sys.exit(not all(holds.values()))


if __name__ == "__main__":
    main()
