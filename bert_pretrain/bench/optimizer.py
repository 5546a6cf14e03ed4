"""``bench optimizer``: every NVLAMB kernel of this machine compared with torch's AdamW, in interleaved blocks.

On the parameters of a BERT, with random gradients, in one process. Bytes per parameter are counted from the source of
an implementation: each memory pass once, all in float32; None if not counted. Divided by the time and by the copy
bandwidth measured in the same run, they show how close an implementation is to the memory limit. On a CPU that share
can exceed 1: a copy reads the target's cache lines before it writes them, an in-place update does not.
"""

import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm
from transformers import BertForPreTraining

from bert_pretrain.bench.options import BenchOptimizerConfig
from bert_pretrain.distributed.world import open_world
from bert_pretrain.errors import ConfigError, require
from bert_pretrain.files.file_system import require_writable, write_json
from bert_pretrain.model.bert import bert_config
from bert_pretrain.model.options import ModelConfig
from bert_pretrain.optim import NVLamb
from bert_pretrain.options.config_loading import CONFIG_DIR, to_dataclass
from bert_pretrain.plan.hardware_peaks import device_name, measured_copy_bandwidth, timed

NVLAMB_BYTES = {"fused": 44.0, "foreach": 44.0, "reference": 144.0, "apex": 72.0}
"""As counted in the kernels' docstrings; the reference makes one memory pass per operation."""

_BUSY = "import torch\na = torch.ones(1500, 1500)\nwhile True:\n    a @ a"
Parameters = list[torch.Tensor]
Implementation = tuple[float | None, Callable[[Parameters], Callable[[], object]]]
"""Bytes per parameter; and a function from parameters with gradients to a step."""


def run(config: BenchOptimizerConfig, others: dict[str, Implementation] | None = None) -> None:
    """Measure every kernel, torch's AdamW and ``others``, print the table and write optimizer.json."""
    require_writable(Path(config.out_dir), "out_dir")
    with open_world(config.device) as world:
        require(world.size == 1, "processes", world.size, "1: the benchmark measures one device")
        with _second_process(config.busy):
            candidates = implementations(world.device) | (others or {})
            rows = [row for name in config.models for row in measure(name, config, world.device, candidates)]
    for row in rows:
        counted = "        -" if row["bytes_per_parameter"] is None else f"{row['bytes_per_parameter']:9.0f}"
        share = "      -" if row["copy_bandwidth_share"] is None else f"{row['copy_bandwidth_share']:7.0%}"
        ratios = f"{row['over_adamw_fused']:8.2f}x{row['over_clip_adamw_fused']:8.2f}x"
        print(f"{row['model']:<8}{row['implementation']:<26}{row['milliseconds']:10.1f} ms{counted} B{share}{ratios}")
    out = Path(config.out_dir) / "optimizer.json"
    write_json(out, {"rows": rows, "options": asdict(config)})
    print("columns: ms, bytes per parameter, share of the copy bandwidth, time / adamw_fused, time / clip+adamw_fused")
    print(f"wrote {out}")


def measure(
    name: str, config: BenchOptimizerConfig, device: torch.device, candidates: dict[str, Implementation]
) -> list[dict[str, Any]]:
    """One row per implementation, on the parameters of model ``name``."""
    parameters = model_parameters(name, device)
    elements = sum(parameter.numel() for parameter in parameters)
    bandwidth = measured_copy_bandwidth(device)
    times: dict[str, list[float]] = {label: [] for label in candidates}
    turns = [label for _ in range(config.rounds) for label in candidates]
    for label in tqdm(turns, desc=name, leave=False):
        step = candidates[label][1](parameters)  # its state is freed after the block: all states would not fit
        timed(step, device)
        times[label] += [timed(step, device) for _ in range(config.steps)]
    medians = {label: statistics.median(values) for label, values in times.items()}
    rows = []
    for label, seconds in medians.items():
        counted = candidates[label][0]
        rows.append(
            {
                "model": name,
                "implementation": label,
                "milliseconds": 1e3 * seconds,
                "bytes_per_parameter": counted,
                "copy_bandwidth": bandwidth,
                "copy_bandwidth_share": None if counted is None else counted * elements / seconds / bandwidth,
                "over_adamw_fused": seconds / medians["adamw_fused"],
                "over_clip_adamw_fused": seconds / medians["clip+adamw_fused"],
                "second_process": config.busy,
                "device": device_name(device),
            }
        )
    return rows


def implementations(device: torch.device) -> dict[str, Implementation]:
    """The kernels that run here, and torch's AdamW, by name. Prints which are skipped and why."""
    found: dict[str, Implementation] = {}
    for kernel, counted in NVLAMB_BYTES.items():
        try:
            stepper(NVLamb, lr=1e-4, kernel=kernel)([_with_gradient(torch.ones(8, device=device))])()
        except ConfigError as error:
            print(f"skipped nvlamb/{kernel}: {error}")
            continue
        found[f"nvlamb/{kernel}"] = counted, stepper(NVLamb, lr=1e-4, kernel=kernel)
    found["adamw_fused"] = 28.0, stepper(torch.optim.AdamW, lr=1e-4, fused=True)
    found["adamw_foreach"] = 80.0, stepper(torch.optim.AdamW, lr=1e-4, foreach=True)
    found["clip+adamw_fused"] = 40.0, _clipped_adamw
    return found


def stepper(optimizer: Callable[..., Any], **options: Any) -> Callable[[Parameters], Callable[[], object]]:
    """A function from parameters to the step of an optimizer made with ``options``."""
    return lambda parameters: optimizer(parameters, **options).step


def _clipped_adamw(parameters: Parameters) -> Callable[[], object]:
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


def model_parameters(name: str, device: torch.device) -> Parameters:
    """Random parameters with gradients, in the shapes of model ``name``."""
    values = OmegaConf.load(CONFIG_DIR / "model" / f"{name}.yaml")
    assert isinstance(values, DictConfig)
    shape = to_dataclass(values, ModelConfig)
    with torch.device("meta"):
        model = BertForPreTraining(bert_config(shape))
    return [_with_gradient(torch.randn(p.shape, device=device).mul_(0.02)) for p in model.parameters()]


def _with_gradient(parameter: torch.Tensor) -> torch.Tensor:
    parameter.requires_grad_()
    parameter.grad = torch.randn_like(parameter).mul_(1e-3)
    return parameter


@contextmanager
def _second_process(wanted: bool) -> Iterator[None]:
    """A background process that multiplies matrices on all cores."""
    process = subprocess.Popen([sys.executable, "-c", _BUSY]) if wanted else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()
