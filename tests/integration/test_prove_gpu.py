"""``scripts/prove_gpu.sh`` rehearsed on a CPU, and its page."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import prove_gpu_page
import pytest

from tests.conftest import ROOT, VOCAB_SIZE
from tests.forked import HANGS

STAGES = ("kernel", "batch_64k", "resume")
"""Rehearsed here. The others are commands and tests that this suite has anyway; by hand all are rehearsed."""
PAGES = sorted([*ROOT.glob("scripts/results/rehearsal_*/page.md"), *ROOT.glob("scripts/results/gpu_*/page.md")])


def prove(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "scripts" / "prove_gpu.sh", *words],
        capture_output=True,
        text=True,
        timeout=6 * HANGS,  # several runs; the script ends by itself before
        env={**os.environ, **variables},
    )


def test_rehearsal(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    done = prove("--rehearse", *STAGES, PYTHON=sys.executable, OUT=str(tmp_path))
    logs = "".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    found = json.loads((tmp_path / "stages.json").read_text())["stages"]
    assert [(row["stage"], row["state"]) for row in found] == [(name, "passed") for name in STAGES]
    losses = [row["loss"] for row in json.loads((tmp_path / "batch_64k.json").read_text())["rows"]]
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 0.05
    checks = json.loads((tmp_path / "resume.json").read_text())["rows"]
    assert len(checks) == 6
    assert all(row["holds"] for row in checks)
    (kernel,) = json.loads((tmp_path / "kernel.json").read_text())["rows"]
    assert 0 <= kernel["relative error"] < 1e-6
    page = (tmp_path / "page.md").read_text()
    assert "| batch_64k |" in page
    assert "| the weights at the end are the same bit for bit | yes |" in page
    assert str(ROOT) not in page


def test_a_stage_that_fails_does_not_end_the_others(tmp_path: Path) -> None:
    done = prove("--rehearse", PYTHON="false", OUT=str(tmp_path))
    assert done.returncode == 1
    lines = [line.split() for line in done.stdout.splitlines() if "failed with status 1" in line]
    assert [line[0] for line in lines] == [
        "tests", "kernel", "optimizer", "step_base_128", "step_large_128", "step_large_512", "beside_trainer",
        "batch_64k", "resume",
    ]  # fmt: skip


def test_no_time_is_a_cut_and_an_unknown_stage_a_mistake(tmp_path: Path) -> None:
    done = prove("--rehearse", "kernel", PYTHON="true", OUT=str(tmp_path), LIMIT="0")
    assert (done.returncode, "cut at its limit" in done.stdout) == (1, True)
    done = prove("--rehearse", "kernels", OUT=str(tmp_path / "new"))
    assert done.returncode == 2
    assert done.stderr.startswith("no stage kernels; stages: tests kernel optimizer")
    done = prove("kernel", PYTHON="false", OUT=str(tmp_path / "new"))
    assert (done.returncode, done.stderr.startswith("false has no torch that finds a CUDA device")) == (2, True)
    assert not (tmp_path / "new").exists()


def test_goals_beside_what_was_measured(tmp_path: Path) -> None:
    slow = {"variant": "baseline", "mfu": 0.1, "mfu_data_sheet": 0.08, "real_tokens_per_second": 4e4}
    fast = {"variant": "all", "mfu": 0.62, "mfu_data_sheet": 0.495, "real_tokens_per_second": 246_000.0}
    for name in ("step_large_128", "step_large_512"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "step.json").write_text(json.dumps({"rows": [slow, fast]}))
    update = {"model": "large", "implementation": "nvlamb/fused", "copy_bandwidth_share": 0.83}
    (tmp_path / "optimizer.json").write_text(json.dumps({"rows": [update]}))
    base, large, long, tokens, small, big = prove_gpu_page.goals(tmp_path)
    assert base["measured"] is None
    assert (large["measured"], large["MFU of the data sheet"], large["reached"]) == ("62.0% (all)", "49.5%", "no")
    assert (long["wanted"], long["reached"]) == ("60%", "yes")
    assert (tokens["wanted"], tokens["measured"], tokens["reached"]) == ("238,000", "246,000", "yes")
    assert "measured" not in small
    assert (big["wanted"], big["measured"], big["reached"]) == ("80%", "83.0%", "yes")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.parent.name)
def test_a_stored_page_is_that_of_its_json(path: Path) -> None:
    """And it has a table for every stage, without a path of the machine."""
    stages = json.loads((path.parent / "stages.json").read_text())
    page = path.read_text()
    assert page == prove_gpu_page.page(path.parent, stages)
    for heading in ("Optimizer", "step_base_128", "step_large_128", "step_large_512", "beside_trainer", "tests"):
        assert f"\n## {heading}" in page
    assert not re.search(r"/(home|root|tmp|work)/", page)


def test_random_shards_can_be_trained_on(tmp_path: Path) -> None:
    import numpy as np
    from random_shards import random_samples

    arrays = random_samples(np.random.default_rng(0), VOCAB_SIZE, 32, 400)
    ids, mask, positions = arrays["input_ids"], arrays["input_mask"], arrays["masked_lm_positions"]
    labels, lengths = arrays["masked_lm_ids"], mask.sum(1)
    assert (ids[:, 0] == 2).all()
    assert (ids[np.arange(400), lengths - 1] == 3).all()
    assert (ids[mask == 0] == 0).all()
    assert 0.85 < (lengths == 32).mean() < 0.95
    used = positions > 0
    assert (labels[used] >= 5).all(), "words only"
    assert (labels[~used] == 0).all()
    assert (positions < lengths[:, None]).all()
    assert used.sum() == pytest.approx(0.15 * mask.sum(), rel=0.1)
    shown = np.take_along_axis(ids, positions, 1)[used]
    assert 0.75 < (shown == 4).mean() < 0.85
    assert 0.05 < (shown == labels[used]).mean() < 0.2
    assert set(np.unique(arrays["segment_ids"] * mask)) == {0, 1}
