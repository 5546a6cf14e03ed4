"""A kernel that is wrong on one of two ranks is used on neither, with weights on all ranks and with sharded updates."""

from pathlib import Path

import torch

from tests.conftest import TEST_RECIPE, run_module


def test_a_fault_on_one_rank_moves_all(tmp_path: Path, shard_dir: Path) -> None:
    done = run_module(
        "tests.integration.first_step_worker", str(tmp_path), *TEST_RECIPE, f"data.dir={shard_dir}", processes=2
    )
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first.keys() == second.keys()
    for case, (kernel, is_foreach, weights) in first.items():
        assert second[case][:2] == (kernel, is_foreach), case
        assert all(torch.equal(a, b) for a, b in zip(weights, second[case][2], strict=True)), case
        assert (kernel, is_foreach) == (("auto", False) if case.startswith("none") else ("foreach", True)), case
    assert done.stdout.count("on rank 1: RuntimeError: no kernel image is available; the run goes on") == 2
    assert done.stdout.count("the first update agrees with that of foreach") == 2
