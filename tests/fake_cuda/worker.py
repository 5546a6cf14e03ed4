"""Runs cases on a fake CUDA device, in a process of its own: the stand-in must be loaded before torch.

    python -m tests.fake_cuda.worker CASES.json RESULTS.json

A case has ``words`` (overrides of a recipe) and optionally ``skipped`` and ``spikes`` (steps), ``resume``,
``sources``, ``evaluate`` (false: not), ``fault`` (one of ``FAULTS``, put into every step) and ``faults`` (each put into
a step of its own). The result is ``outcome``, "passed" or the error, and what the run counts; of ``faults`` the errors
by name.
"""

import contextlib
import gc
import io
import json
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fake_cuda import stand_in

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)  # set by tests that run kernels; here their launches are looked at
    stand_in.load()

import numpy as np
import torch

from bert_pretrain.config import PretrainConfig
from bert_pretrain.distributed.preemption import StopRequest
from bert_pretrain.options.config_loading import load_config
from bert_pretrain.training.evaluation import sum_losses
from bert_pretrain.training.loss_spikes import LossSpikeDetector
from bert_pretrain.training.step_result import HostCopy
from tests.fake_cuda.device import DEVICE, fake_cuda, fake_triton
from tests.fake_cuda.trainers import MemoryStore, Run, built, numbers_of_steps

SMALL = (
    "device=cuda", "data.dir=memory", "data.block_size=16", "init_from=null", "init_moments=null",
    "model.num_hidden_layers=1", "model.hidden_size=1024", "model.num_attention_heads=16",
    "model.intermediate_size=4096", "model.vocab_size=30522", "model.max_position_embeddings=512",
    "data.sequence_length=512", "speed.compile=false", "batch.global_batch_size=6", "batch.micro_batch_size=4",
    "schedule.total_steps=4", "training.evaluate_every_steps=4", "checkpoint.every_steps=4", "logging.every_steps=1",
    "logging.layers_every_steps=2",
)  # fmt: skip
"""A recipe in four steps of two micro-batches, the second smaller, and with one layer: the others would be alike.

The sizes are BERT-large's for all recipes: torch keeps what it has found out about an operation on fake tensors of the
same shapes.
"""
_kept: list[torch.Tensor] = []


def _read_early(run: Run) -> None:
    copy = HostCopy(run.trainer.applied)
    copy._copied = None
    copy.read()


FAULTS: dict[str, Callable[[Run, torch.Tensor], object]] = {
    "item": lambda _, sums: sums[0].item(),
    "CPU tensor": lambda _, sums: sums + torch.zeros(4, dtype=torch.float64),
    "0-d CPU tensor": lambda _, sums: sums + torch.zeros((), dtype=torch.float64),
    "kept tensor": lambda _, sums: _kept.append(sums.clone()),
    "foreach with a 0-d CUDA tensor": lambda _, sums: torch._foreach_add_([sums], torch.zeros((), device=DEVICE)),
    "foreach with a 0-d CPU tensor": lambda _, sums: torch._foreach_mul_([sums], torch.zeros(())),
    "nonzero": lambda _, sums: sums.nonzero(),
    "boolean mask": lambda _, sums: sums[sums > 0],
    "list of places": lambda _, sums: sums[[0, 1]],
    "tensor of a number": lambda *_: torch.tensor([1.0], device=DEVICE),
    "copy that is not pinned": lambda *_: torch.zeros(1 << 20).to(DEVICE, non_blocking=True),
    "copy to the host": lambda _, sums: sums.cpu(),
    "early read": lambda run, _: _read_early(run),
    "synchronize": lambda *_: torch.cuda.synchronize(),
    "buffer on the CPU": lambda run, _: run.trainer.model.register_buffer("extra", torch.zeros(1)),
}
"""What is put at the end of ``_accumulate``, with the sums of the losses."""


def put_in(fault: str, run: Run) -> None:
    """Do ``fault`` in every step."""
    accumulate = run.trainer._accumulate

    def faulty(*args: Any) -> torch.Tensor:
        sums = accumulate(*args)
        FAULTS[fault](run, sums)
        return sums

    run.trainer._accumulate = faulty  # type: ignore[method-assign]


def error_of(fault: str, run: Run) -> str:
    """The error of a step with ``fault``; empty if it runs."""
    accumulate, steps = run.trainer._accumulate, run.trainer.data.steps(0, pin=True)
    put_in(fault, run)
    try:
        run.trainer.train_step(next(steps))
    except Exception as error:
        return reason(error)
    finally:
        run.trainer._accumulate = accumulate  # type: ignore[method-assign]
        steps.close()
    return ""


def small_config(*words: str) -> PretrainConfig:
    """``words``, with ``SMALL`` for what they do not say; of two values of an option the last."""
    by_option = {word.partition("=")[0]: word for word in (*SMALL, *words)}
    return load_config("pretrain", [*by_option.values()], PretrainConfig)


def run_case(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run a case; raises what goes wrong. Returns what was counted."""
    store, launches = MemoryStore(), list[str]()
    config = small_config(*case["words"])
    with fake_cuda() as guard, fake_triton(launches):
        guard.answers = numbers_of_steps(tuple(case.get("skipped", ())), tuple(case.get("spikes", ())))
        with built(config, guard, folder, store) as run:
            detector = LossSpikeDetector(mean=10.5, deviation=0.1, last=10.5, seen=99)
            run.trainer.recovery.detector = detector
            if not case.get("evaluate", True):
                run.trainer.heldout = None
            if "fault" in case:
                put_in(case["fault"], run)
            if "faults" in case:
                return {"found": {fault: error_of(fault, run) for fault in case["faults"]}}
            run.trainer.run()
            run.check()
            counted = {"steps": len(run.live), "spikes": detector.spikes, "skipped": run.trainer.progress.skipped}
            if "sources" in case:
                heldout = run.trainer.heldout
                assert heldout is not None
                sources = np.arange(heldout.samples) % 3
                with guard.watching():
                    sums = sum_losses(run.trainer.model, heldout, 4, run.trainer.world, StopRequest(), sources)
                counted["corpora"] = len(sums or ()) - 1
        if case.get("resume"):
            longer = small_config(*case["words"], "schedule.total_steps=8")
            with built(longer, guard, folder, store, resumed=True) as run:
                run.trainer.run()
                run.check()
            counted["resumed"] = len(run.live)
        counted |= {"slow_lists": dict(guard.slow_lists), "triton": len(launches), "saves": len(store.saved)}
    return counted


def reason(error: Exception) -> str:
    """An error in one line, with the innermost line of the program."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/bert_pretrain/" in frame.filename]
    place = f" ({frames[-1].filename.partition('/bert_pretrain/')[2]}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}{place}"


def main() -> None:
    """Run all cases; the results are written after each."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    cases, results = json.loads(Path(sys.argv[1]).read_text()), []
    for case in cases:
        started = time.process_time()
        gc.freeze()  # what is there now is not looked at when live tensors are counted
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            try:
                counted = {"outcome": "passed", **run_case(case, Path(folder))}
            except Exception as error:
                counted = {"outcome": reason(error)}
        results.append({**case, **counted})
        gc.unfreeze()
        _kept.clear()
        seconds = f"{time.process_time() - started:.1f} s"
        partial = Path(sys.argv[2]).with_suffix(".partial")
        partial.write_text(json.dumps(results))
        partial.replace(sys.argv[2])
        print(f"{len(results)} of {len(cases)}: {case['name']}: {counted['outcome']} {seconds}", flush=True)


if __name__ == "__main__":
    main()
