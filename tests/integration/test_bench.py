"""The benchmarks run and write the promised files; their timings are not tested."""

import json
from pathlib import Path

import pytest

from tests.conftest import TEST_RECIPE, run_module, succeed

STEP_KEYS = {
    "model", "sequence_length", "variant", "real_tokens_per_second", "speedup_over_baseline", "mfu",
    "peak_memory_bytes", "device", "padding_share", "data_ms", "forward_ms", "backward_ms", "communication_ms",
    "optimizer_ms",
}  # fmt: skip
OPTIMIZER_KEYS = {
    "model", "implementation", "milliseconds", "bytes_per_parameter", "copy_bandwidth_share", "device",
}  # fmt: skip


def test_step(tmp_path: Path, shard_dir: Path) -> None:
    options = [*TEST_RECIPE, f"data.dir={shard_dir}", f"out_dir={tmp_path}", "rounds=3", "precision.compute=fp32"]
    out = succeed("bert_pretrain.bench", "step", *options)
    rows = json.loads((tmp_path / "step.json").read_text())["rows"]
    names = ["baseline", "masked positions", "+ group by length", "+ last layer rows", "+ fused qkv"]
    names += ["+ fast dropout", "all"]
    assert [row["variant"] for row in rows] == names
    assert all(row.keys() >= STEP_KEYS for row in rows)
    assert all(row["real_tokens_per_second"] > 0 for row in rows)
    assert all(row["forward_ms"] > 0 and row["backward_ms"] > 0 and row["optimizer_ms"] > 0 for row in rows)
    assert rows[0]["padding_share"] == rows[1]["padding_share"] > rows[2]["padding_share"] == rows[-1]["padding_share"]
    for row in rows:
        speedup = row["real_tokens_per_second"] / rows[0]["real_tokens_per_second"]
        assert row["speedup_over_baseline"] == pytest.approx(speedup)
    assert all(row["communication_ms"] == 0 for row in rows), "one process"
    assert all(row["peak_memory_bytes"] > 12 * 4000 for row in rows)  # weights and moments of 4,000 parameters at least
    assert all(name in out for name in names)
    assert (tmp_path / "step.png").stat().st_size > 10_000


def test_optimizer(tmp_path: Path) -> None:
    options = ["models=[tiny]", "rounds=1", "steps=1", "busy=true", "device=cpu", f"out_dir={tmp_path}"]
    succeed("bert_pretrain.bench", "optimizer", *options)
    rows = json.loads((tmp_path / "optimizer.json").read_text())["rows"]
    found = {row["implementation"] for row in rows}
    assert found >= {"nvlamb/fused", "nvlamb/foreach", "nvlamb/reference", "adamw_fused", "clip+adamw_fused"}
    assert all(row.keys() >= OPTIMIZER_KEYS for row in rows)
    assert all(row["milliseconds"] > 0 for row in rows)


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    step = ["step", *TEST_RECIPE]
    fp16 = [*step, "rounds=3", "data.dir=x", "device=cpu", "precision.compute=fp16", f"out_dir={tmp_path}"]
    few = [*step, "rounds=1", "data.dir=x"]
    for options in (["jump"], ["optimizer", "models=[huge]"], few, fp16):
        done = run_module("bert_pretrain.bench", *options)
        assert done.returncode != 0
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert "allowed" in done.stderr
    assert "precision.compute is 'fp16'" in done.stderr
