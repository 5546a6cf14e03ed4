"""Compares the plan with published runs, calibrated on one of them.

    python scripts/published_runs.py

Writes ``scripts/results/plan_published.json``. Published figures and their sources: ``published_runs.yaml``.
"""

import json
from dataclasses import replace
from datetime import date
from typing import Any

from omegaconf import OmegaConf
from repository_root import ROOT
from results_file import argument_parser

from bert_pretrain.options.config_loading import load_config
from bert_pretrain.plan.run import PlanConfig, scaling_of
from bert_pretrain.plan.scaling import Scaling

HERE = ROOT / "scripts"
Row = dict[str, Any]


def published() -> Any:
    """The published figures, as plain dictionaries."""
    return OmegaConf.to_container(OmegaConf.load(HERE / "published_runs.yaml"))


def planned(recipe: str, gpu: str, network: str, micro: int, mean_length: float) -> tuple[PlanConfig, Scaling]:
    """A recipe as NVIDIA's code ran it: eager attention, and one 16-bit all-reduce after the backward pass."""
    options = [f"recipe={recipe}", f"gpu={gpu}", f"network={network}", f"mean_length={mean_length}", "overlap=false"]
    options += [f"batch.micro_batch_size={micro}", "communication.gradients=fp16", "communication.bucket_mb=100000"]
    options += ["model.attention=eager"]
    config = load_config("plan", options, PlanConfig)
    assert config.gpu is not None
    return config, scaling_of(config, config.gpu)


def with_share(scaling: Scaling, share: float) -> Scaling:
    """The same devices with another ``gpu.matrix_share``."""
    return replace(scaling, gpu=replace(scaling.gpu, matrix_share=share))


def calibrated_share(figures: Any) -> float:
    """The ``gpu.matrix_share`` for which the plan matches the calibration point, by bisection."""
    phase, nodes = figures["calibration"]["phase"], figures["calibration"]["nodes"]
    kind, shape = figures["throughput"], figures["phases"][phase]
    config, scaling = planned(
        shape["recipe"], kind["gpu"], kind["network"], shape["micro_batch_size"], shape["mean_length"]
    )
    batch, wanted = config.batch.global_batch_size, kind["sequences_per_second"][phase][nodes]
    low, high = 0.01, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        rate = batch / with_share(scaling, middle).step(batch, nodes * scaling.gpu.per_node).total
        low, high = (middle, high) if rate < wanted else (low, middle)
    return high


def row(run: str, unit: str, found: float, expected: float, efficiency: float | None = None) -> Row:
    """One line of the result."""
    shown = "" if efficiency is None else f"{efficiency:.1%}"
    error = f"{found / expected - 1:+.1%}"
    return {"run": run, "unit": unit, "published": expected, "plan": round(found, 1), "error": error,
            "plan's efficiency": shown}  # fmt: skip


def rows() -> list[Row]:
    """Every published figure and the plan's."""
    figures = published()
    share, kind, found = calibrated_share(figures), figures["throughput"], []
    for phase, shape in figures["phases"].items():
        config, scaling = planned(
            shape["recipe"], kind["gpu"], kind["network"], shape["micro_batch_size"], shape["mean_length"]
        )
        scaling, batch = with_share(scaling, share), config.batch.global_batch_size
        for nodes, rate in kind["sequences_per_second"][phase].items():
            devices = nodes * scaling.gpu.per_node
            label = f"{nodes} DGX A100, phase {phase}"
            predicted = batch / scaling.step(batch, devices).total
            found.append(row(label, "sequences/s", predicted, rate, scaling.efficiency(batch, devices)))
    for run in figures["minutes"]:
        seconds = 0.0
        for phase, micro, length in zip((1, 2), run["micro"], run["lengths"], strict=True):
            config, scaling = planned(figures["phases"][phase]["recipe"], run["gpu"], run["network"], micro, length)
            step = with_share(scaling, share).step(config.batch.global_batch_size, run["devices"])
            seconds += step.total * config.schedule.total_steps
        label = f"{run['run']}, {run['devices']:,} GPUs, both phases"
        found.append(row(label, "minutes", seconds / 60, run["published"]))
    return found


def main() -> None:
    """Write the result and print it."""
    parser = argument_parser(__doc__)
    parser.add_argument("commit", nargs="?", default="", help="commit to record in the result")
    given = parser.parse_args()
    share = calibrated_share(published())
    result = {
        "what": "The plan compared with NVIDIA's published runs of BERT-large, calibrated on the first row",
        "date": str(date.today()),
        "device": "arithmetic, no device",
        "commit": given.commit,
        "command": "python scripts/published_runs.py",
        "note": f"gpu.matrix_share from the first row: {share:.4f}. Sources and assumptions for each run: "
        "`scripts/published_runs.yaml`.",
        "rows": rows(),
    }
    (HERE / "results" / "plan_published.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for line in result["rows"]:
        print(line)


if __name__ == "__main__":
    main()
