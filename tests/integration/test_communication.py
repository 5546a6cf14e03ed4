"""Each gradient is all-reduced once per step, and 16 bit rounds it no further than stated."""

import json
from pathlib import Path
from typing import Any

import pytest

from bert_pretrain.distributed.options import CommunicationConfig
from bert_pretrain.errors import ConfigError
from tests.conftest import TEST_RECIPE, succeed


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, shard_dir: Path) -> list[dict[str, Any]]:
    """The results of two ranks."""
    out = tmp_path_factory.mktemp("communication")
    options = (*TEST_RECIPE, f"data.dir={shard_dir}", "run_dir=unused")
    succeed("tests.integration.communication_worker", str(out), *options, processes=2)
    return [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_every_gradient_is_all_reduced_once_for_any_accumulation(results: list[dict[str, Any]]) -> None:
    for result in results:
        for name in ("fp32 2 25.0", "fp32 6 0.002", "bf16 6 25.0", "fp16 2 25.0"):
            assert sum(result[name]["reduced"]) == result[name]["parameters"], name
        assert len(result["fp32 6 0.002"]["reduced"]) > len(result["fp32 2 25.0"]["reduced"])


def test_16_bit_rounds_as_stated(results: list[dict[str, Any]]) -> None:
    """Two ranks: each term is rounded once (relative error 2^-9 in bf16, 2^-12 in fp16), and the sum once more."""
    for result in results:
        assert result["fp32 2 25.0"]["error"] < 1e-12  # the tests' model is in float64
        assert result["fp32 6 0.002"]["error"] < 1e-12
        assert 2**-13 < result["bf16 6 25.0"]["error"] < 2**-8
        assert 2**-16 < result["fp16 2 25.0"]["error"] < 2**-11


def test_both_ranks_raise_the_error_of_one(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert result["error"].startswith("data.dir is 'x', which is no directory (rank 1 on ")


def test_buffers_of_the_model_are_not_sent(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert result["collectives"] == ["c10d::allreduce_"]


def test_all_ranks_stop_an_evaluation_after_the_same_batch(results: list[dict[str, Any]]) -> None:
    """A request in batch 1 is all-reduced with batch 2 and read after batch 3; one in batch 3 or 4 comes too late."""
    assert results[0]["evaluations"] == [[False, 3], [True, 3], [True, 3]]
    assert results[1]["evaluations"] == [[False, 3], [True, 4], [True, 4]]


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"communication.gradients is 'int8'; allowed: fp32, bf16, fp16"):
        CommunicationConfig("int8", 25.0, 600.0)
    with pytest.raises(ConfigError, match=r"communication.bucket_mb is 0"):
        CommunicationConfig("fp32", 0, 600.0)
    with pytest.raises(ConfigError, match=r"communication.timeout_seconds is 1; allowed: 5 to "):
        CommunicationConfig("fp32", 25.0, 1)
