"""The stages of ``prove_gpu.sh`` that are no command of ``bert-pretrain``. Each writes one JSON file.

    python scripts/prove_gpu_stages.py tests OUT.json
    python scripts/prove_gpu_stages.py kernel OUT.json
    python scripts/prove_gpu_stages.py batch_64k OUT.json --seconds 90 OPTION...
    python scripts/prove_gpu_stages.py resume OUT.json OPTION...

``tests``: the tests marked gpu. ``kernel``: two NVLAMB steps of the Triton kernels on small layers with uneven ends,
beside the reference; for compute-sanitizer, or on a CPU with TRITON_INTERPRET=1. ``batch_64k``: eight steps, whose loss
must fall, on the longest sequences with which they take at most so many seconds at the rate that ``bench step`` left in
step_large_128 beside OUT.json. ``resume``: a run that is never stopped, and one that SIGTERM stops and the same command
resumes: status 75, then the same weights bit for bit. OPTIONs are of pretrain. Exit status 1: not as it should be.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

from repository_root import ROOT
from results_file import argument_parser

Row = dict[str, Any]
STEPS, LENGTHS = 8, (128, 64, 32, 16)
UNKNOWN_RATE = 150_000.0
"""Real tokens/s that are assumed where BERT-large was not measured."""
FALL = 0.05
"""Nats by which the loss must fall within the steps. Between two batches of 65,536 it differs by a tenth of that."""


def write(out: Path, rows: list[Row], passed: bool, note: str) -> None:
    """Write the JSON of a stage and end: status 1 unless it ``passed``."""
    out.write_text(json.dumps({"rows": rows, "passed": passed, "note": note}, indent=2) + "\n", encoding="utf-8")
    print(note)
    sys.exit(not passed)


def tests(out: Path, given: Any) -> None:
    """Run the tests marked gpu; only their files are imported."""
    files = [path for path in sorted(ROOT.glob("tests/**/test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junitxml={report}", *map(str, files)]
        status = subprocess.run(words, cwd=ROOT, check=False).returncode
        if not report.exists():
            write(out, [], False, f"pytest ended with status {status} and wrote no report")
        cases = list(ElementTree.parse(report).iter("testcase"))
    outcome = {case: next((mark.tag for mark in case if mark.tag in ("failure", "error", "skipped")), "passed")
               for case in cases}  # fmt: skip
    rows = [{"test": f"{case.get('classname')}::{case.get('name')}", "outcome": outcome[case]} for case in cases]
    counts = {kind: list(outcome.values()).count(kind) for kind in ("passed", "failure", "error", "skipped")}
    write(out, rows, status == 0, ", ".join(f"{count} {kind}" for kind, count in counts.items()))


def kernel(out: Path, given: Any) -> None:
    """Two steps of the Triton kernels on layers with uneven ends and more than one chunk, beside the reference."""
    import torch

    from bert_pretrain.optim import NVLamb, nvlamb, nvlamb_triton

    on_gpu = torch.cuda.is_available()
    if not nvlamb_triton.HAS_TRITON:
        write(out, [], True, "triton is not installed")
    nvlamb.KERNELS["fused"] = nvlamb_triton.fused_step
    device, results = "cuda" if on_gpu else "cpu", []
    for name in ("fused", "reference"):
        random = torch.Generator().manual_seed(0)
        sizes = (1, 7, 2048, nvlamb_triton.CHUNK + 5)
        weights = [torch.randn(size, generator=random).to(device).requires_grad_() for size in sizes]
        optimizer = NVLamb(weights, lr=0.01, kernel=name)
        for _ in range(2):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=random).to(device)
            optimizer.step()
        results.append(torch.cat([weight.detach().double().cpu() for weight in weights]))
    error = float((results[0] - results[1]).norm() / results[1].norm())
    place = torch.cuda.get_device_name() if on_gpu else "CPU, in Triton's interpreter"
    rows = [{"kernel": "fused", "device": place, "run under": given.under, "relative error": error}]
    write(out, rows, error < 1e-6, f"relative error {error:.1e} to the reference, run under {given.under}")


def pretrain(run_dir: Path, options: list[str]) -> subprocess.Popen[bytes]:
    """Start a run of one process."""
    words = [sys.executable, "-m", "bert_pretrain.pretrain", *options, f"run_dir={run_dir}", "logging.every_steps=1"]
    return subprocess.Popen(words, cwd=ROOT)


def logged(run_dir: Path) -> list[Row]:
    """The rows of steps in ``metrics.jsonl`` so far."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text("utf-8").split("\n")[:-1] if path.exists() else []  # the last may not be whole
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if "loss" in row]


def batch_64k(out: Path, given: Any) -> None:
    """Eight steps of the 64K recipe on shards of random words; the loss must fall."""
    from random_shards import write_random_shards

    batch = next((int(word.split("=")[1]) for word in given.options if "global_batch_size" in word), 65_536)
    vocabulary = next((int(word.split("=")[1]) for word in given.options if "vocab_size" in word), 30_522)
    measured, rate = out.parent / "step_large_128" / "step.json", UNKNOWN_RATE
    if measured.exists():
        rate = max(row["real_tokens_per_second"] for row in json.loads(measured.read_text("utf-8"))["rows"])
    length = next((n for n in LENGTHS if STEPS * batch * n / rate <= given.seconds), LENGTHS[-1])
    with tempfile.TemporaryDirectory(prefix="batch_64k.") as folder:
        work, samples = Path(folder), batch // 4  # four epochs a step
        write_random_shards(work / "data", vocabulary, length, samples)
        options = [
            "recipe=bert_large_64k_phase1", f"data.dir={work / 'data'}", f"data.sequence_length={length}",
            f"batch.micro_batch_size={256 * 128 // length}", f"schedule.total_steps={STEPS}",
            "training.evaluate_every_steps=1000", "checkpoint.every_steps=1000", *given.options,
        ]  # fmt: skip
        status = pretrain(work / "run", options).wait()
        found = logged(work / "run")
    names = ("step", "loss", "mlm_accuracy", "lr", "grad_norm", "tokens_per_second", "mfu")
    rows = [{name: row[name] for name in names if name in row} for row in found]
    fell = len(rows) == STEPS and rows[-1]["loss"] < rows[0]["loss"] - FALL
    cut = "" if length == LENGTHS[0] else f", cut from {LENGTHS[0]} to fit {given.seconds} s at {rate:,.0f} tokens/s"
    ends = f"loss {rows[0]['loss']:.3f} to {rows[-1]['loss']:.3f}" if rows else "no step"
    write(out, rows, fell and status == 0, f"{len(rows)} steps of {batch:,} samples of {length} tokens{cut}; {ends}")


def resume(out: Path, given: Any) -> None:
    """Stop a run with SIGTERM and resume it; compare it with one that was never stopped."""
    from safetensors.numpy import load_file

    timed = ("tokens_per_second", "mfu", "data_wait_share")
    with tempfile.TemporaryDirectory(prefix="resume.") as folder:
        whole, stopped = Path(folder, "whole"), Path(folder, "stopped")
        statuses = [pretrain(whole, given.options).wait()]
        run = pretrain(stopped, given.options)
        while not logged(stopped) and run.poll() is None:
            time.sleep(0.01)
        run.send_signal(signal.SIGTERM)
        statuses.append(run.wait())
        reached = len(logged(stopped))
        statuses.append(pretrain(stopped, given.options).wait())
        last = [sorted(run_dir.glob("checkpoints/step_*/model/model.safetensors")) for run_dir in (whole, stopped)]
        weights = [load_file(paths[-1]) if paths else {} for paths in last]
        rows = [logged(run_dir) for run_dir in (whole, stopped)]
    same = all((weights[0][name] == weights[1].get(name)).all() for name in weights[0]) and bool(weights[0])
    kept = [[{k: v for k, v in row.items() if not k.startswith(("matrix", *timed))} for row in part] for part in rows]
    checks = {
        "the run that is never stopped ends with status 0": statuses[0] == 0,
        "after SIGTERM the run ends with status 75": statuses[1] == 75,
        "it had not ended by itself": 0 < reached < len(rows[0]),
        "the same command resumes it, status 0": statuses[2] == 0,
        "the weights at the end are the same bit for bit": same,
        "the logged losses are the same": kept[0] == kept[1] and bool(kept[0]),
    }
    table = [{"check": check, "holds": bool(holds)} for check, holds in checks.items()]
    note = f"stopped after step {reached} of {len(rows[0])}, statuses {statuses}"
    write(out, table, all(checks.values()), note)


STAGES: dict[str, Callable[[Path, Any], None]] = {
    "tests": tests, "kernel": kernel, "batch_64k": batch_64k, "resume": resume
}  # fmt: skip


def main() -> None:
    """Run one stage."""
    parser = argument_parser(__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("out", type=Path)
    parser.add_argument("options", nargs="*", help="of bert-pretrain pretrain")
    parser.add_argument("--seconds", type=int, default=90, help="of batch_64k")
    parser.add_argument("--under", default="no other program", help="kernel: what it was started with, for the table")
    given = parser.parse_args()
    STAGES[given.stage](given.out, given)


if __name__ == "__main__":
    main()
