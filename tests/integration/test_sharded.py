"""State divided over two ranks: the weights of one rank, half the memory, one checkpoint format for all."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT, TEST_RECIPE, run_module

FAMILY = [
    "nvlamb", "nvlamb_foreach", "nvlamb_reference", "nvidia_code", "lamb", "lars", "larc", "adamw", "adam", "sgd",
]  # fmt: skip
ELEMENTS = 3824


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    out = tmp_path_factory.mktemp("sharded")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(ROOT / "tests/integration/sharded_worker.py"), str(out)],
        cwd=ROOT, capture_output=True, text=True, timeout=200, env={**_environment(), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def _environment() -> dict[str, str]:
    import os

    return dict(os.environ)


def error(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    pairs = zip(found, expected, strict=True)
    return max(((a.double() - b.double()).norm() / b.double().norm()).item() for a, b in pairs)


def equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", FAMILY)
def test_weights_are_those_of_one_rank_and_the_same_on_both(ranks: list[dict], name: str) -> None:
    first, second = (rank["divided"][name] for rank in ranks)
    assert error(first["weights"], first["expected"]) < 1e-6
    assert equal(first["weights"], second["weights"])


@pytest.mark.parametrize("name", FAMILY)
def test_a_rank_holds_about_half_of_the_state(ranks: list[dict], name: str) -> None:
    own = [rank["divided"][name]["bytes"] for rank in ranks]
    whole = ranks[0]["divided"][name]["whole_bytes"]
    assert sum(own) == whole
    assert max(own) < 0.55 * whole


@pytest.mark.parametrize("name", FAMILY)
def test_the_gradient_travels_once_and_the_weights_once(ranks: list[dict], name: str) -> None:
    """A step: every element of the gradient in one all-reduce (DDP's), no other, and one broadcast of each rank's."""
    for rank in ranks:
        assert rank["divided"][name]["gradient_elements_travelled_per_step"] == ELEMENTS
        assert rank["divided"][name]["calls"] == {"broadcast": 2}


@pytest.mark.parametrize("name", FAMILY)
def test_the_state_is_the_ordinary_one_and_resumes_bitwise(ranks: list[dict], name: str) -> None:
    first, second = (rank["divided"][name] for rank in ranks)
    assert first["groups"] == first["expected_groups"]
    assert first["state"].keys() == first["expected_state"].keys()
    for index, expected in first["expected_state"].items():
        found = first["state"][index]
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key].dtype == value.dtype
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-7)
    assert second["state"] == {}
    assert equal(first["resumed"], first["weights"])
    assert equal(second["resumed"], first["weights"])


@pytest.mark.parametrize("name", ["reference_torch.float32", "foreach_torch.float32", "auto_torch.float32"])
def test_slices_of_fsdp2_give_the_weights_of_whole_layers(ranks: list[dict], name: str) -> None:
    first, second = (rank["slices"][name] for rank in ranks)
    both = zip(first["local_sizes"], second["local_sizes"], first["whole_sizes"], strict=True)
    sizes = [(a, b) for a, b, whole in both if a + b == whole]
    assert len(sizes) == len(first["whole_sizes"])
    assert any(a != b for a, b in sizes)
    assert error(first["weights"], first["expected"]) < 1e-6


def test_slices_in_bf16_keep_their_masters(ranks: list[dict]) -> None:
    found = ranks[0]["slices"]["foreach_torch.bfloat16"]
    assert error(found["weights"], found["expected"]) < 1e-2


def test_what_cannot_be_done_on_slices_is_refused(ranks: list[dict]) -> None:
    for rank in ranks:
        said = rank["refusals"]
        assert said["fused"] == "kernel is 'fused'; allowed: auto | reference | foreach for DTensors"
        assert said["mixed"].startswith("parameters are DTensors and ordinary tensors; allowed: one kind")
        assert said["few"] == "ranks is 2; allowed: up to 1, the layers to deal"


def weights_after(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run_dir / f"checkpoints/step_{step:08d}/model/model.safetensors")


def test_a_run_resumes_divided_bitwise_and_undivided_to_rounding(tmp_path: Path, shard_dir: Path) -> None:
    options = [
        *TEST_RECIPE,
        f"data.dir={shard_dir}",
        "model.hidden_dropout_prob=0",
        "model.attention_probs_dropout_prob=0",
    ]
    through, again, alone = (tmp_path / name for name in ("through", "again", "alone"))
    done = run_module(
        "bert_pretrain.pretrain", *options, f"run_dir={through}", "optimizer.sharded=true", processes=2
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "state divided over 2 ranks" in done.stdout
    for other in (again, alone):
        shutil.copytree(through, other)
        shutil.rmtree(other / "checkpoints/step_00000006")
    for other, extra, processes in ((again, ["optimizer.sharded=true"], 2), (alone, [], 0)):
        done = run_module("bert_pretrain.pretrain", *options, f"run_dir={other}", *extra, processes=processes)
        assert done.returncode == 0, done.stderr
        assert "going on from" in done.stdout
    expected = weights_after(through, 6)
    assert expected.keys() == weights_after(again, 6).keys()
    assert all(torch.equal(value, expected[name]) for name, value in weights_after(again, 6).items())
    for name, value in weights_after(alone, 6).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
