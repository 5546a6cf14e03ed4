"""Predicted step times against worked examples, and against published runs within the stated errors."""

import json
import math
import re
import runpy
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from bert_pretrain.distributed.options import CommunicationConfig
from bert_pretrain.errors import ConfigError
from bert_pretrain.model.flops import parameter_count, training_flops
from bert_pretrain.model.options import ModelConfig
from bert_pretrain.options.config_files import CONFIG_DIR
from bert_pretrain.options.config_loading import load_config
from bert_pretrain.plan.figure import draw_scaling
from bert_pretrain.plan.run import PlanConfig, describe_plan, describe_scaling, scaling_of, with_micro_batch_size
from bert_pretrain.plan.scaling import GpuConfig, NetworkConfig, Scaling, powers_of_two
from tests.conftest import ROOT

LARGE = ModelConfig(1024, 24, 16, 4096, 512, 30_522, "gelu", 0.1, 0.1, 0.02, "sdpa", True)
GPU = GpuConfig(
    "A300", "bf16", 300, 0.5, memory_gb_per_s=2000, launch_us=0, per_node=8, node_gb_per_s=300, memory_gb=96
)
PLAIN = Scaling(
    LARGE, 128, 128, 64, CommunicationConfig("fp32", 1e6, 600), GPU, NetworkConfig(100, 0.8, 0.0), False, False, None
)


def test_a_step_worked_example() -> None:
    """BERT-large has 336,226,108 parameters; a sample of 128 tokens, 19.2 of them masked, takes 240.5 GFLOP."""
    assert parameter_count(LARGE) == 336_226_108
    flops = training_flops(LARGE, 1, 128, 128**2, 19.2)
    assert flops == pytest.approx(240.5e9, rel=1e-3)
    step = PLAIN.step(65_536, 256)  # 256 samples a rank, in 4 micro-batches
    assert step.compute == pytest.approx(256 * 240.5e9 / 150e12, rel=1e-3)
    assert step.all_reduce == pytest.approx(2 * 255 / 256 * 4 * 336.226e6 / 80e9, rel=1e-4)
    assert step.exposed == step.all_reduce
    assert step.optimizer == pytest.approx(48 * 336.226e6 / 2e12, rel=1e-4)
    inside = PLAIN.step(65_536, 8)  # one node: NVLink, not the network
    assert inside.all_reduce == pytest.approx(2 * 7 / 8 * 4 * 336.226e6 / 240e9, rel=1e-4)
    assert PLAIN.step(65_536, 1).all_reduce == 0


def test_overlap_with_the_backward_pass() -> None:
    """The all-reduce overlaps with two thirds of the last micro-batch, except for the word embeddings."""
    plain = replace(PLAIN, overlap=True, communication=CommunicationConfig("fp32", 25, 600))
    words = 2 * 255 / 256 * 4 * 30_522 * 1024 / 80e9
    assert plain.step(65_536, 256).exposed == pytest.approx(words, rel=1e-4)
    small = replace(plain, micro_batch_size=1).step(65_536, 256)
    backward = 2 / 3 * 240.5e9 / 150e12
    assert small.exposed == pytest.approx(small.all_reduce - backward, rel=1e-3)
    one_bucket = replace(plain, communication=CommunicationConfig("fp32", 1e6, 600)).step(65_536, 256)
    assert one_bucket.exposed == pytest.approx(one_bucket.all_reduce)  # a single bucket is complete only at the end


def test_16_bit_gradients_sharding_measured_rates_and_latency() -> None:
    half = replace(PLAIN, communication=CommunicationConfig("bf16", 1e6, 600)).step(65_536, 256)
    assert half.all_reduce == pytest.approx(PLAIN.step(65_536, 256).all_reduce / 2)
    sharded = replace(PLAIN, sharded=True).step(65_536, 256)
    own, weights = (4 + 44 / 256) * 336.226e6 / 2e12, 255 / 256 * 4 * 336.226e6 / 80e9
    assert sharded.optimizer == pytest.approx(own + weights, rel=1e-4)
    measured = replace(PLAIN, device_tokens_per_second=128e3).step(65_536, 256)
    assert measured.compute == pytest.approx(0.256)
    late = replace(PLAIN, network=NetworkConfig(100, 0.8, 10.0), communication=CommunicationConfig("fp32", 25, 600))
    buckets = 52  # 1,283 MiB in 25s
    added = late.step(65_536, 256).all_reduce - PLAIN.step(65_536, 256).all_reduce
    assert added == pytest.approx(buckets * 2 * 8 * 10e-6)


def test_eager_attention_adds_the_memory_traffic_of_its_scores() -> None:
    """24 layers of 16 heads, each 128 x 128 scores at 40 bytes, at 2 TB/s: 125.8 us a sample."""
    eager = replace(PLAIN, model=replace(LARGE, attention="eager"))
    added = eager.step(65_536, 256).compute - PLAIN.step(65_536, 256).compute
    assert added == pytest.approx(256 * 24 * 16 * 128**2 * 40 / 2e12)


def test_squared_lengths() -> None:
    """Uniform from 80 to 512: the mean square is (512^3 - 80^3) / 3 / 432; at most mean times longest."""
    assert PLAIN.squared_length() == 128**2
    long = replace(PLAIN, sequence_length=512, mean_length=296)
    assert long.squared_length() == pytest.approx((512**3 - 80**3) / 3 / 432)
    assert replace(long, mean_length=16).squared_length() == 16 * 512


def test_the_rank_with_the_most_samples_determines_the_step() -> None:
    """100 samples over 64 ranks: some have two."""
    assert PLAIN.step(100, 64).compute == pytest.approx(2 * PLAIN.step(64, 64).compute)
    with pytest.raises(ConfigError, match="global_batch_size is 63, but there are 64 ranks"):
        PLAIN.step(63, 64)


def test_the_most_devices_above_the_efficiency_floor() -> None:
    assert powers_of_two(4096)[-1] == 4096
    assert powers_of_two(5) == [1, 2, 4]
    for batch in (256, 4096, 65_536):
        last = PLAIN.most_efficient_devices(batch, 0.8)
        assert PLAIN.efficiency(batch, last) >= 0.8
        assert 2 * last > min(4096, batch) or PLAIN.efficiency(batch, 2 * last) < 0.8
    assert PLAIN.efficiency(65_536, 1) == 1.0
    assert PLAIN.most_efficient_devices(4096, 0.8) < PLAIN.most_efficient_devices(65_536, 0.8)


def planned(*options: str) -> PlanConfig:
    return load_config("plan", ["recipe=bert_large_64k_phase1", *options], PlanConfig)


@pytest.mark.parametrize("gpu", sorted(path.stem for path in (CONFIG_DIR / "gpu").glob("*.yaml")))
def test_every_gpu_and_network_composes(gpu: str) -> None:
    for network in (CONFIG_DIR / "network").glob("*.yaml"):
        config = planned(f"gpu={gpu}", f"network={network.stem}", "devices=64")
        assert config.gpu is not None
        assert scaling_of(config, config.gpu).step(65_536, 64).total > 0


@pytest.mark.parametrize(("gpu", "share", "tokens"), [("h200", 0.48, 238_000), ("b200", 0.40, 452_000)])
def test_the_rate_that_a_gpu_should_reach(gpu: str, share: float, tokens: int) -> None:
    """BERT-large at 512, 1,992 MFLOP a token: peak * share / FLOPs, as docs/benchmarks.md states it."""
    config = planned(f"gpu={gpu}", f"gpu.matrix_share={share}", "data.sequence_length=512", "devices=1")
    assert config.gpu is not None
    scaling = scaling_of(config, config.gpu)
    assert scaling.sample_flops() / 512 == pytest.approx(1.992e9, rel=1e-3)
    text = describe_scaling(config, scaling)
    found = re.search(r"([\d,]+) real tokens/s a device, (\d+)% MFU of the data sheet's ([\d.]+) TFLOP/s", text)
    assert found, text
    assert float(found[1].replace(",", "")) == pytest.approx(tokens, rel=0.005)
    assert (int(found[2]), float(found[3])) == (round(100 * share), config.gpu.matrix_tflops)
    assert f"| {tokens:,} |" in (ROOT / "docs/benchmarks.md").read_text()


def test_the_prediction_is_printed_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = planned("gpu=a100_80g", "network=hdr200_x8", "devices=256", "optimizer.sharded=true")
    assert config.gpu is not None
    scaling = scaling_of(config, config.gpu)
    text = describe_scaling(config, scaling)
    seconds = scaling.step(65_536, 256).total
    assert f"{seconds * 1e3:,.1f} ms a step" in text
    assert scaling.sharded
    figures: list = []
    monkeypatch.setattr(plt, "close", figures.append)
    draw_scaling(tmp_path / "new/scaling.png", "A100", scaling, 65_536, 7038, 0.8)
    assert (tmp_path / "new/scaling.png").stat().st_size > 10_000
    curves = {line.get_label(): line for line in figures[0].axes[0].lines}
    whole, smallest = (curves[f"{batch:,} samples a step"] for batch in (65_536, 4_096))
    assert whole.get_xdata()[-1] == 4096
    assert whole.get_ydata()[8] == pytest.approx(seconds * 7038 / 3600)
    assert smallest.get_ydata()[0] > 0.9 * whole.get_ydata()[0]  # the same samples, in more steps


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("plot=x.png", "plot is 'x.png'; allowed: null, unless gpu names a kind"),
        ("plot=notes.md", "plot is 'notes.md'; allowed: the name of a .png file"),
        ("samples=0", "samples is 0; allowed: 1 or more"),
        ("device_tokens_per_second=9", "device_tokens_per_second is 9.0; allowed: null, unless gpu names a kind"),
        ("mean_length=129", "mean_length is 129.0; allowed: up to 128"),
        ("efficiency_floor=1", "efficiency_floor is 1.0"),
        ("device_tokens_per_second=0", "device_tokens_per_second is 0.0"),
        ("network.share=0", "network.share is 0.0"),
    ],
)
def test_invalid_options(option: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        planned(option)


# Largest relative errors of the plan, which is calibrated on the first row alone, as stated in the README.
TOLERANCES = {"phase 1": 0.03, "phase 2": 0.09, "A100 (2022)": 0.04, "DGX-2H": 0.22}


def test_an_automatic_micro_batch_size_fills_the_memory() -> None:
    """In equal micro-batches. A sample of 128 tokens in BERT-base:

    128 (12 (18 x 768 + 2 x 12 x 128) x 2 + 3 x 0.15 x 30,522 x 4) bytes.
    """
    options = ["recipe=bert_base_1gpu", "gpu=h100", "batch.micro_batch_size=auto"]
    config = load_config("plan", options, PlanConfig)
    assert config.gpu is not None
    found = with_micro_batch_size(config, config.gpu, "bf16").batch.micro_batch_size
    sample = 128 * (12 * (18 * 768 + 2 * 12 * 128) * 2 + 3 * 0.15 * 30_522 * 4)
    most, share = int((0.92 * 80e9 - (16 + 2) * 110_106_428) / sample), config.batch.global_batch_size
    assert found == math.ceil(share / math.ceil(share / most)) <= most < share
    tiny = replace(config.gpu, memory_gb=1.0)
    with pytest.raises(ConfigError, match=r"micro_batch_size is 'auto'; allowed: .* fits into 1 GB"):
        with_micro_batch_size(config, tiny, "bf16")


def test_published_runs_within_the_stated_errors() -> None:
    found = runpy.run_path(str(ROOT / "scripts/published_runs.py"))["rows"]()
    assert len(found) == 15
    assert found[0]["error"] == "+0.0%"  # the calibration
    for row in found:
        tolerance = next(limit for name, limit in TOLERANCES.items() if name in row["run"])
        assert abs(row["plan"] / row["published"] - 1) < tolerance, row
    stored = json.loads((ROOT / "scripts/results/plan_published.json").read_text())["rows"]
    assert stored == found, "run scripts/published_runs.py again"


@pytest.mark.parametrize(
    ("size", "expected"), [(192, "33% of it padding; batch.micro_batch_size=128 has less"), (128, "")]
)
def test_a_size_that_leaves_much_padding_is_named(size: int, expected: str) -> None:
    """65,536 samples on 256 ranks are 256 each: in 192 and 64, padded to 192 where the model is compiled."""
    options = ["recipe=bert_large_64k_phase1", "devices=256", f"batch.micro_batch_size={size}"]
    config = load_config("plan", options, PlanConfig)
    assert expected in describe_plan(config, 256, "H100 80 GB", "bf16", None)
    assert "padding;" not in describe_plan(config, 256, "cpu", "bf16", None)
    assert ("padding;" in describe_plan(config, 256, "cuda", "bf16", None)) == bool(expected)
