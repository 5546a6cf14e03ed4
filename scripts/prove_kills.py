"""Kill a run at random moments, or ask it to stop; started again, it is the run that nobody disturbed.

    python scripts/prove_kills.py kill 100 SEED RESULT.json      # SIGKILL to a random rank, during saves too
    python scripts/prove_kills.py stop 20 SEED RESULT.json       # SIGTERM to a random rank or to the launcher

Two ranks with accumulation under ``bert_pretrain.launch``, a tiny model with dropout, a checkpoint every few steps.
After each blow the newest checkpoint that was ever seen whole must still be there or have a newer one; after a stop
the status must be 75 and the step that both ranks name the one that was saved. In the end the weights must be those
of the undisturbed run bit for bit, and the rows of metrics.jsonl the same but for their times.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from results_file import write_result
from safetensors.torch import load_file

from bert_pretrain.checkpoint import CheckpointStore, find_fault, load_progress
from bert_pretrain.preemption import STOPPED
from tests.conftest import TEST_RECIPE, make_shards

ROOT = Path(__file__).resolve().parent.parent
TIMED = ("tokens_per_second", "matrix_peak_share", "data_wait_share")
EVERY = 7
"""Steps between two checkpoints: so near that many blows fall into one being written."""
LIFE = 4.0
"""A blow falls at most so many seconds after the first step that is logged."""


def start(run_dir: Path, data: Path, steps: int) -> subprocess.Popen:
    """The command, always the same."""
    command = [sys.executable, "-m", "bert_pretrain.launch", "--standalone", "--nproc-per-node=2"]
    options = [
        *TEST_RECIPE, f"data.dir={data}", f"run_dir={run_dir}", f"schedule.total_steps={steps}",
        f"checkpoint.every_steps={EVERY}", "training.evaluate_every_steps=50", "model.hidden_dropout_prob=0.1",
        "precision.compute=fp32", "batch.micro_batch_size=2",
    ]  # fmt: skip
    with open(f"{run_dir}.log", "a") as log:
        return subprocess.Popen(
            [*command, "-m", "bert_pretrain.pretrain", *options],
            cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def ranks(launcher: subprocess.Popen) -> list[int]:
    """The process ids of the ranks."""
    return [int(pid) for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()]


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


def wait_for_steps(process: subprocess.Popen, run_dir: Path, before: float) -> bool:
    """Return when the run has written a row since ``before``; False where it has ended."""
    path = run_dir / "metrics.jsonl"
    while process.poll() is None:
        if path.exists() and path.stat().st_mtime > before and lines(run_dir) > 0:
            return True
        time.sleep(0.02)
    return False


def strike(process: subprocess.Popen, run_dir: Path, number: signal.Signals, rng: random.Random) -> dict[str, Any]:
    """Wait for a random moment and send the signal; what was seen."""
    begun = time.time()
    wait_for_steps(process, run_dir, begun + 1.0)
    time.sleep(rng.random() * LIFE)
    whole = newest(run_dir)
    victims = ranks(process) if process.poll() is None else []
    if number == signal.SIGTERM and rng.random() < 0.3:
        victims = [process.pid]
    writing = bool(list((run_dir / "checkpoints").glob(".*.partial")))
    if victims:
        os.kill(rng.choice(victims), number)
    status = process.wait(timeout=600)
    return {"at_step": lines(run_dir), "while_saving": writing, "whole_before": whole, "whole_after": newest(run_dir),
            "status": status, "struck": bool(victims)}  # fmt: skip


def prove(kind: str, blows: int, seed: int, work: Path) -> tuple[list[dict[str, Any]], dict[str, bool]]:
    """Undisturbed and disturbed runs; a row a blow, and what holds."""
    rng = random.Random(seed)
    steps = int(os.environ.get("STEPS", 100 * blows))
    data = make_shards(work / "data")
    undisturbed, disturbed = work / "undisturbed", work / "disturbed"
    assert start(undisturbed, data, steps).wait() == 0, Path(f"{undisturbed}.log").read_text()[-3000:]
    found: list[dict[str, Any]] = []
    number = signal.SIGKILL if kind == "kill" else signal.SIGTERM
    while len(found) < blows:
        row = strike(start(disturbed, data, steps), disturbed, number, rng)
        found.append({"blow": len(found) + 1, **row})
        print(found[-1], flush=True)
        if row["status"] == 0:
            break
    left = newest(disturbed)
    assert start(disturbed, data, steps).wait() == 0, Path(f"{disturbed}.log").read_text()[-3000:]
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
        said = Path(f"{disturbed}.log").read_text().count("stopped as asked after step")
        holds["status 75, each said once"] = {row["status"] for row in found} == {STOPPED} and said == blows
    print(f"the last blow left step {left} of {steps}; {holds}")
    return found, holds


def main() -> None:
    """Strike, compare, write down."""
    kind, blows, seed, result = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="prove_kills.") as folder:
        found, holds = prove(kind, blows, seed, Path(folder))
    saving = sum(row["while_saving"] for row in found)
    note = f"Seed {seed}; {saving} of {len(found)} blows fell while a checkpoint was being written; {holds}; "
    note += f"{time.perf_counter() - begun:.0f} s in all."
    what = {"kill": "SIGKILL to a random rank at random moments, then the same command", "stop": "SIGTERM likewise"}
    write_result(result, what[kind], found, note)
    sys.exit(not all(holds.values()))


if __name__ == "__main__":
    main()
