"""Runs training on two network namespaces as two nodes, connected by a veth pair.

    sudo .venv/bin/python scripts/prove_nodes.py bytes seconds cut

Starts ``pretrain_nodes.sh`` on both, and measures
- bytes: the bytes sent in a step, for several accumulations and for 16-bit gradients, against the minimum of a ring;
- seconds: the time of a step with the link slowed by tc, for several bucket sizes, against the plan's prediction from
  the compute rate of one node alone and the rate of a bare all-reduce over the link;
- cut: the weights of two nodes against those of two ranks on one; with the link cut in mid-step, both nodes must name
  the other's rank within ``communication.timeout_seconds``, and the run must resume.
Writes ``scripts/results/cpu_DATE_nodes_*.json``. Needs root and iproute2; takes ten minutes on two cores.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
from repository_root import ROOT
from results_file import argument_parser, write_result
from safetensors.torch import load_file
from two_nodes import (
    ADDRESSES,
    INTERFACE,
    bytes_sent,
    create_network,
    drop_packets,
    limit_bandwidth,
    on_node,
    remove_network,
)

from bert_pretrain.distributed.options import CommunicationConfig
from bert_pretrain.errors import EXIT_LOST_RANK
from bert_pretrain.model.flops import parameter_count
from bert_pretrain.model.options import ModelConfig
from bert_pretrain.plan.scaling import GpuConfig, NetworkConfig, Scaling
from tests.conftest import make_shards

CUT_TIMEOUT = 20
WIDTH, LAYERS, LENGTH, BATCH, LOGGED = 256, 2, 16, 128, 5
_ALL_REDUCE = """if True:
    import statistics, sys, time, torch, torch.distributed as dist
    dist.init_process_group("gloo")
    gradient, seconds = torch.zeros(int(sys.argv[1])), []
    for _ in range(9):
        time.sleep(0.15)
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(gradient)
        seconds.append(time.perf_counter() - started)
    print(4 * len(gradient) / statistics.median(seconds))
"""
OPTIONS = [
    "recipe=demo", "device=cpu", "precision.compute=fp32", "data.masking=static", f"data.sequence_length={LENGTH}",
    "model.vocab_size=97", f"model.max_position_embeddings={LENGTH}", f"model.hidden_size={WIDTH}",
    f"model.intermediate_size={4 * WIDTH}", f"logging.every_steps={LOGGED}", "training.evaluate_every_steps=100000",
    "checkpoint.every_steps=100000", "schedule.warmup_proportion=0.2",
]  # fmt: skip
Row = dict[str, Any]


class Node(NamedTuple):
    """A process on a node."""

    process: subprocess.Popen[bytes]
    run_dir: Path
    log: Path


def start(work: Path, name: str, *options: str, kind: str = "both") -> list[Node]:
    """Start a run over ``both`` nodes, or one on ``each``, or one of two ranks on the ``first``."""
    cores, started = sorted(os.sched_getaffinity(0)), []
    for number in (0,) if kind == "first" else (0, 1):
        run_dir = work / (f"{name}-{number}" if kind == "each" else name)
        script = ["scripts/pretrain_nodes.sh", "2", str(number), f"{ADDRESSES[0]}:29600"]
        if kind != "both":
            script = ["scripts/pretrain_node.sh"]
        processes, core = (2, cores) if kind == "first" else (1, [cores[number % len(cores)]])
        variables = ["env", f"PYTHON={sys.executable}", f"INTERFACE={INTERFACE}{number}", f"PROCESSES={processes}"]
        command = [*on_node(number), "taskset", "-c", ",".join(map(str, core)), *variables, *script, *OPTIONS]
        log = Path(f"{run_dir}.{number}.log")
        with log.open("a") as out:
            process = subprocess.Popen(
                [*command, f"data.dir={work / 'data'}", f"run_dir={run_dir}", *options],
                cwd=ROOT, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        started.append(Node(process, run_dir, log))
    return started


def run(work: Path, name: str, *options: str, kind: str = "both") -> list[Path]:
    """``start``, and wait for the end; the run directories."""
    nodes = start(work, name, *options, kind=kind)
    for number, node in enumerate(nodes):
        if node.process.wait(timeout=900) != 0:
            sys.exit(f"FAILED: node {number} of {name}:\n{node.log.read_text()}")
    return [node.run_dir for node in nodes]


def all_reduce_rate() -> float:
    """Bytes per second, each way, of bare all-reduces of the gradient's size over the link."""
    started = []
    for number in (0, 1):
        variables = ["env", f"MASTER_ADDR={ADDRESSES[0]}", "MASTER_PORT=29700", "WORLD_SIZE=2", f"RANK={number}"]
        command = [sys.executable, "-c", _ALL_REDUCE, str(parameter_count(model_config()))]
        inside = [*on_node(number), *variables, f"GLOO_SOCKET_IFNAME={INTERFACE}{number}"]
        started.append(subprocess.Popen([*inside, *command], stdout=subprocess.PIPE, text=True))
    first, _ = [process.communicate(timeout=300)[0] for process in started]
    return float(first)


def bytes_per_step(work: Path, name: str, *options: str) -> tuple[float, float]:
    """Bytes that each node sends in one step, from two runs that differ by 30 steps."""
    totals = []
    for steps in (5, 35):
        before = [bytes_sent(0), bytes_sent(1)]
        run(work, f"{name}-{steps}", f"schedule.total_steps={steps}", f"batch.global_batch_size={BATCH}", *options)
        totals.append([bytes_sent(number) - before[number] for number in (0, 1)])
    one, other = ((more - few) / 30 for few, more in zip(*totals, strict=True))
    return one, other


def seconds_per_step(run_dir: Path, batch: int) -> float:
    """Median over the logged rows without the first two."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rates = [row["tokens_per_second"] for row in rows if "tokens_per_second" in row][2:]
    return batch * MEAN_LENGTH / statistics.median(rates)


MEAN_LENGTH = (LENGTH // 2 + LENGTH) / 2  # of the test shards: uniform from L/2 to L


def model_config() -> ModelConfig:
    """The model of ``OPTIONS``."""
    return ModelConfig(WIDTH, LAYERS, 2, 4 * WIDTH, LENGTH, 97, "gelu", 0.0, 0.0, 0.02, "eager", True)


def predicted(rate: float, link: float, micro: int, bucket_mb: float, gradients: str, overlap: bool) -> float:
    """Seconds of a step by the plan, from the measured rates of one node and of the link."""
    scaling = Scaling(
        model=model_config(), sequence_length=LENGTH, mean_length=MEAN_LENGTH, micro_batch_size=micro,
        communication=CommunicationConfig(gradients, bucket_mb, 600.0), device_tokens_per_second=rate,
        gpu=GpuConfig("CPU", "fp32", 0.1, 0.5, 1e6, 0.0, 1, 1e6, 16.0),  # the rate includes the optimizer
        network=NetworkConfig(link / 1e9, 1.0, 50.0), overlap=overlap, sharded=False,
    )  # fmt: skip
    return scaling.step(BATCH, 2).total


def measure_bytes(work: Path) -> list[Row]:
    """Bytes of a step against the minimum of a ring: 2 (n-1)/n times the gradient, each way."""
    rows = []
    for accumulation, gradients in ((1, "fp32"), (2, "fp32"), (8, "fp32"), (1, "bf16")):
        micro = BATCH // 2 // accumulation
        options = [f"batch.micro_batch_size={micro}", f"communication.gradients={gradients}"]
        each_way = bytes_per_step(work, f"bytes-{accumulation}-{gradients}", *options)
        least = parameter_count(model_config()) * (4 if gradients == "fp32" else 2)
        rows.append(
            {"accumulation": accumulation, "gradients": gradients, "ring's minimum, bytes each way": least,
             "node 0 sent": round(each_way[0]), "node 1 sent": round(each_way[1]),
             "above the minimum": f"{max(each_way) / least - 1:+.2%}"}
        )  # fmt: skip
        print(rows[-1], flush=True)
        assert max(each_way) < 1.05 * least, "more than 5 % above the ring's minimum"
        assert min(each_way) > 0.99 * least, "less than the ring's minimum"
    return rows


def node_rate(work: Path, accumulation: int) -> float:
    """Tokens per second of the slower node, with one independent run on each."""
    options = ["schedule.total_steps=25", f"batch.micro_batch_size={BATCH // 2 // accumulation}"]
    options.append(f"batch.global_batch_size={BATCH // 2}")
    dirs = run(work, f"alone-{accumulation}", *options, kind="each")
    return BATCH // 2 * MEAN_LENGTH / max(seconds_per_step(path, BATCH // 2) for path in dirs)


def measure_seconds(work: Path) -> list[Row]:
    """Seconds of a step over a slow link against the plan's, with and without overlap of the all-reduce."""
    rows: list[Row] = []
    rates = {accumulation: node_rate(work, accumulation) for accumulation in (1, 4)}
    for megabits, accumulation, bucket_mb, gradients in (
        (100, 1, 25.0, "fp32"), (100, 1, 4.0, "fp32"), (100, 1, 1.0, "fp32"), (100, 1, 0.25, "fp32"),
        (100, 1, 1.0, "bf16"), (50, 4, 1.0, "fp32"),
    ):  # fmt: skip
        limit_bandwidth(megabits)
        rate, link, micro = rates[accumulation], all_reduce_rate(), BATCH // 2 // accumulation
        options = ["schedule.total_steps=25", f"batch.micro_batch_size={micro}", f"batch.global_batch_size={BATCH}"]
        options += [f"communication.bucket_mb={bucket_mb}", f"communication.gradients={gradients}"]
        both = run(work, f"slow-{megabits}-{accumulation}-{bucket_mb}-{gradients}", *options)
        found = seconds_per_step(both[0], BATCH)
        plan, serial = (predicted(rate, link, micro, bucket_mb, gradients, overlap) for overlap in (True, False))
        rows.append(
            {"link, Mbit/s": megabits, "accumulation": accumulation, "bucket, MiB": bucket_mb, "gradients": gradients,
             "all-reduce, Mbit/s": 8e-6 * link, "compute alone, s": BATCH // 2 * MEAN_LENGTH / rate,
             "plan without overlap, s": serial, "plan, s": plan, "measured, s": found,
             "error": f"{plan / found - 1:+.1%}"}
        )  # fmt: skip
        print(rows[-1], flush=True)
    assert all(abs(row["plan, s"] / row["measured, s"] - 1) < 0.15 for row in rows), "off by over 15 %"
    return rows


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """The weights of the last checkpoint."""
    return load_file(max((run_dir / "checkpoints").glob("step_*")) / "model/model.safetensors")


def equal(one: Path, other: Path) -> str:
    """How equal the weights of two runs are, in words. Raises if they differ by more than rounding."""
    pairs = [(first, weights(other)[name]) for name, first in weights(one).items()]
    difference = max(float((first - second).abs().max() / first.abs().max()) for first, second in pairs)
    assert difference < 1e-5, difference
    return "bit for bit" if difference == 0 else f"to {difference:.1e}"


def measure_cut(work: Path) -> list[Row]:
    """Compare the weights of two nodes and of two ranks on one; cut the link in mid-step, check the exit, resume."""
    options = ["schedule.total_steps=60", f"batch.global_batch_size={BATCH}", "model.hidden_dropout_prob=0.1"]
    options += ["checkpoint.every_steps=10", f"communication.timeout_seconds={CUT_TIMEOUT}"]
    (whole,), (one_node,) = set(run(work, "whole", *options)), run(work, "one-node", *options, kind="first")
    rows = [{"shown": f"weights of two nodes and of two ranks on one after 60 steps: equal {equal(whole, one_node)}"}]
    limit_bandwidth(50)  # a step then spends most of its time in the all-reduce
    nodes, metrics = start(work, "cut", *options), work / "cut/metrics.jsonl"
    while not (metrics.exists() and '"step": 25,' in metrics.read_text()):
        time.sleep(0.1)
    drop_packets()
    cut = time.monotonic()
    for number, node in enumerate(nodes):
        status = node.process.wait(timeout=10 * CUT_TIMEOUT)
        seconds, errors = time.monotonic() - cut, re.findall(r"error: (.*)", node.log.read_text())
        rows.append({"shown": f"link cut: node {number} exited after {seconds:.0f} s with {status}: {errors}"})
        print(rows[-1], node.log.read_text()[-1000:], flush=True)
        assert status == EXIT_LOST_RANK
        assert seconds < CUT_TIMEOUT + 5, "including the exit of torchrun"
        assert len(errors) == 1
        assert f"rank {1 - number} on " in errors[0], errors
    create_network()
    run(work, "cut", *options)
    resumed = re.findall(r" from \S+, step (\d+)", (work / "cut.0.log").read_text())
    rows.append({"shown": f"the same command, from step {resumed[0]}: weights equal {equal(whole, work / 'cut')}"})
    return rows


def main() -> None:
    """Measure the given parts, or all."""
    parser = argument_parser(__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"some of {', '.join(PARTS)}; default: all")
    parts = parser.parse_args().parts or list(PARTS)
    if unknown := set(parts) - PARTS.keys():
        parser.error(f"unknown parts {', '.join(unknown)}; allowed: {', '.join(PARTS)}")
    if os.geteuid() != 0:
        sys.exit("error: network namespaces need root")
    with tempfile.TemporaryDirectory(prefix="prove_nodes.") as folder:
        make_shards(Path(folder) / "data", train=(3000, 2000))
        for name in parts:
            what, measure = PARTS[name]
            create_network()
            try:
                rows = measure(Path(folder))
            finally:
                remove_network()
            path = ROOT / f"scripts/results/cpu_{date.today()}_nodes_{name}.json"
            write_result(path, what, rows, NOTE, f"python scripts/prove_nodes.py {name}")
    print("ok")


PARTS: dict[str, tuple[str, Callable[[Path], list[Row]]]] = {
    "bytes": ("Bytes sent between two nodes in a step", measure_bytes),
    "seconds": ("Time of a step over a slow link, compared with the plan", measure_seconds),
    "cut": ("The link between two nodes is cut in mid-step", measure_cut),
}
NOTE = "Two network namespaces on one machine, connected by a veth pair."


if __name__ == "__main__":
    main()
