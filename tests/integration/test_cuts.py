"""Any cut of the global batch over ranks and micro-batches gives the same gradient and the same weights."""

from pathlib import Path

import pytest
import torch

from tests.conftest import TEST_RECIPE, run_module

# 12 samples: ranks x micro-batch size. With 5 and 7 the last micro-batch is smaller; 3 ranks of 4 samples, cut in
# 3 + 1; the test shards hold one to three masked tokens a sample, so micro-batches differ in them too.
CUTS = {1: (12, 5, 1), 2: (6, 4, 1), 3: (4, 3)}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, shard_dir: Path) -> dict[str, dict]:
    out = tmp_path_factory.mktemp("cuts")
    for world, micro_sizes in CUTS.items():
        sizes = ",".join(map(str, micro_sizes))
        options = (*TEST_RECIPE, f"data.dir={shard_dir}", "optimizer.lr=0.05", "run_dir=unused")
        done = run_module("tests.integration.cut_worker", str(out), sizes, *options, processes=world)
        assert done.returncode == 0, done.stderr
    return {path.stem: torch.load(path, weights_only=True) for path in sorted(out.iterdir())}


def relative_error(found: dict, expected: dict) -> float:
    """Largest error of any tensor, relative to that tensor's largest entry."""
    errors = []
    for name, value in expected.items():
        scale = value.abs().max().clamp(min=1e-12 if "key.bias" not in name else 1.0)  # a key bias has no effect
        errors.append(((found[name] - value).abs().max() / scale).item())
    return max(errors)


def test_all_cuts_ran(results: dict[str, dict]) -> None:
    assert len(results) == sum(map(len, CUTS.values()))
    assert all(gradient.norm() > 0 for name, gradient in results["1x12"]["gradients"].items() if "key.bias" not in name)


@pytest.mark.parametrize("cut", [f"{world}x{micro}" for world, sizes in CUTS.items() for micro in sizes])
def test_gradient_and_three_updates_are_those_of_the_uncut_batch(results: dict[str, dict], cut: str) -> None:
    whole, found = results["1x12"], results[cut]
    assert relative_error(found["gradients"], whole["gradients"]) < 1e-6
    assert relative_error(found["weights"], whole["weights"]) < 1e-6
    torch.testing.assert_close(torch.tensor(found["numbers"]), torch.tensor(whole["numbers"]), rtol=1e-6, atol=1e-9)


def test_the_loss_falls(results: dict[str, dict]) -> None:
    """Cuts of a model that does not learn would agree too."""
    numbers = results["1x12"]["numbers"]
    mlm_losses = [row[10] / row[6] for row in numbers]
    assert mlm_losses[0] != pytest.approx(mlm_losses[2], rel=1e-3)
