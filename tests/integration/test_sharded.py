"""Optimizer state sharded over two ranks: the weights of one rank, half the memory, the same checkpoint format."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bert_pretrain.config import PretrainConfig
from bert_pretrain.distributed.preemption import StopRequest
from bert_pretrain.distributed.world import open_world
from bert_pretrain.options.config_loading import load_config
from bert_pretrain.run import pretrain
from bert_pretrain.training.metrics import read_rows
from tests.conftest import TEST_RECIPE, succeed

FAMILY = [
    "nvlamb", "nvlamb_foreach", "nvlamb_reference", "nvidia_code", "lamb", "lars", "larc", "adamw", "adam", "sgd",
    "muon", "adamh", "schedule_free",
]  # fmt: skip
ELEMENTS = 3818


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


def run_options(shard_dir: Path) -> list[str]:
    free = ["model.hidden_dropout_prob=0", "model.attention_probs_dropout_prob=0", "logging.layers_every_steps=2"]
    return [*TEST_RECIPE, *free, f"data.dir={shard_dir}"]


@pytest.fixture(scope="module")
def ranks(out: Path, shard_dir: Path) -> list[dict]:
    """The results of both ranks; ``out`` holds their runs."""
    succeed("tests.integration.sharded_worker", str(out), *run_options(shard_dir), processes=2)
    return [torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def error(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    pairs = zip(found, expected, strict=True)
    return max(((a.double() - b.double()).norm() / b.double().norm()).item() for a, b in pairs)


def equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", FAMILY)
def test_weights_are_those_of_one_rank_and_the_same_on_both(ranks: list[dict], name: str) -> None:
    first, second = (rank["sharded"][name] for rank in ranks)
    assert error(first["weights"], first["expected"]) < 1e-6
    assert equal(first["weights"], second["weights"])
    assert error(first["evaluated"], first["expected_evaluated"]) < 1e-6
    assert equal(first["evaluated"], second["evaluated"])
    assert equal(first["evaluated"], first["weights"]) == (name != "schedule_free")


@pytest.mark.parametrize("name", FAMILY)
def test_a_rank_holds_about_half_of_the_state(ranks: list[dict], name: str) -> None:
    own = [rank["sharded"][name]["bytes"] for rank in ranks]
    whole = ranks[0]["sharded"][name]["whole_bytes"]
    assert sum(own) == whole
    assert max(own) < 0.55 * whole


@pytest.mark.parametrize("name", FAMILY)
def test_a_step_all_reduces_gradients_once_and_broadcasts_weights_once(ranks: list[dict], name: str) -> None:
    """No all-reduce besides DDP's, and one broadcast from each rank."""
    for rank in ranks:
        assert rank["sharded"][name]["elements_reduced_per_step"] == ELEMENTS
        assert rank["sharded"][name]["calls"] == {"broadcast": 2}


@pytest.mark.parametrize("name", FAMILY)
def test_the_state_dict_is_the_ordinary_one_and_resumes_bitwise(ranks: list[dict], name: str) -> None:
    first, second = (rank["sharded"][name] for rank in ranks)
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


@pytest.mark.parametrize("name", FAMILY)
def test_loading_is_no_collective(ranks: list[dict], name: str) -> None:
    assert [rank["sharded"][name]["calls_of_load"] for rank in ranks] == [{}, {}]


def test_a_load_that_fails_on_one_rank_fails_on_all(ranks: list[dict]) -> None:
    first, second = (rank["failed_load"] for rank in ranks)
    assert first == second
    assert "rank 1" in first


@pytest.mark.parametrize("kernel", ["reference", "foreach", "auto"])
def test_slices_of_fsdp2_give_the_weights_of_whole_layers(ranks: list[dict], kernel: str) -> None:
    first, second = (rank["slices"][f"{kernel}_torch.float32"] for rank in ranks)
    both = zip(first["local_sizes"], second["local_sizes"], first["whole_sizes"], strict=True)
    sizes = [(a, b) for a, b, whole in both if a + b == whole]
    assert len(sizes) == len(first["whole_sizes"])
    assert any(a != b for a, b in sizes)
    assert error(first["weights"], first["expected"]) < 1e-6


@pytest.mark.parametrize("kernel", ["reference", "foreach", "auto"])
def test_dtensors_in_bf16_keep_float32_masters(ranks: list[dict], kernel: str) -> None:
    found = ranks[0]["slices"][f"{kernel}_torch.bfloat16"]
    assert error(found["weights"], found["expected"]) < 1e-2


@pytest.mark.parametrize("kernel", ["reference", "foreach"])
@pytest.mark.parametrize("mesh", ["(2, 1)", "(1, 2)"])
def test_tensor_parallel_layers_are_updated_as_whole_ones(ranks: list[dict], mesh: str, kernel: str) -> None:
    for rank in ranks:
        found = rank["tensor_parallel"][f"{mesh} {kernel}"]
        assert len(found["placements"]) >= 3
        assert error(found["weights"], found["expected"]) < 1e-6
        torch.testing.assert_close(found["norms"], found["whole_norms"], rtol=1e-4, atol=1e-9)


def test_rows_dealt_in_turns_are_slices_too(ranks: list[dict]) -> None:
    for rank in ranks:
        found = rank["strided"]
        torch.testing.assert_close(found["rows"], found["expected"], rtol=1e-6, atol=1e-7)
        assert found["norms"][0] == pytest.approx(found["norms"][1], rel=1e-6)


def test_flags_of_a_step_are_equal_on_all_ranks_and_true_without_gradients(ranks: list[dict]) -> None:
    first, second = (rank["flags"] for rank in ranks)
    assert first == second
    (skipped, norm), (also, finite), none = first
    assert (skipped, norm, also) == (1.0, float("inf"), 0.0)
    assert finite == pytest.approx(3 * 800**0.5)  # two layers of 400 elements
    assert none == (0.0, 0.0)


def test_what_is_not_possible_with_dtensors_is_refused(ranks: list[dict]) -> None:
    for rank in ranks:
        messages = rank["refusals"]
        assert messages["fused"] == "kernel is 'fused'; allowed: auto, reference, foreach for DTensors"
        assert messages["mixed"].startswith("parameters are DTensors and ordinary tensors; allowed: one kind")
        for other in ("LARS", "AdamW", "Adam", "SGD"):
            assert messages[other] == "a parameter is 'a DTensor'; allowed: ordinary tensors, or NVLamb"
        assert "dtypes of the parameters" in messages["several"]
        assert messages["few"] == "ranks is 2; allowed: up to 1, the layers to deal"


def test_a_run_resumes_bitwise_sharded_and_to_rounding_unsharded(ranks: list[dict], out: Path, shard_dir: Path) -> None:
    """Six steps on two ranks; resumed from step 3 on two ranks, and on one without sharding."""
    config = load_config("pretrain", [*run_options(shard_dir), f"run_dir={out / 'alone'}"], PretrainConfig)
    with open_world("cpu") as world:
        pretrain(config, world, StopRequest())
    expected, again, alone = (
        load_file(out / name / "checkpoints/step_00000006/model/model.safetensors")
        for name in ("through", "again", "alone")
    )
    assert expected.keys() == again.keys() == alone.keys()
    for name, value in expected.items():
        assert torch.equal(value, again[name])
        torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-5)
    assert not torch.equal(value, load_file(out / "again/checkpoints/step_00000003/model/model.safetensors")[name])


def test_a_sharded_run_of_averages_resumes_bitwise(ranks: list[dict], out: Path) -> None:
    expected, again = (
        load_file(out / f"{name}_free/checkpoints/step_00000006/model/model.safetensors")
        for name in ("through", "again")
    )
    assert all(torch.equal(value, again[name]) for name, value in expected.items())
    rows = [read_rows(out / f"{name}_free/metrics.jsonl") for name in ("through", "again")]
    assert [row["mlm_loss"] for row in rows[0] if "mlm_loss" in row] == [
        r["mlm_loss"] for r in rows[1] if "mlm_loss" in r
    ]


def test_layer_reports_cover_all_layers_and_survive_a_resume(ranks: list[dict], out: Path) -> None:
    rows = [read_rows(out / name / "metrics.jsonl") for name in ("through", "again")]
    reports = [[row for row in run if "trust_ratio" in row] for run in rows]
    assert reports[0] == reports[1]
    assert [row["step"] for row in reports[0]] == [2, 4, 6]
    layers = load_file(out / "through/checkpoints/step_00000006/model/model.safetensors").keys()
    for kind in ("trust_ratio", "weight_norm", "update_norm"):
        assert reports[0][0][kind].keys() == set(layers)
