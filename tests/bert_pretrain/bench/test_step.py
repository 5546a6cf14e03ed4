"""On a GPU each variant is measured alone: what failed is noted, what was measured is kept."""

import pytest
import torch

from bert_pretrain.bench import step
from bert_pretrain.bench.options import BenchStepConfig
from bert_pretrain.distributed.world import World
from bert_pretrain.options.config_loading import load_config
from tests.conftest import TEST_RECIPE


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))


@pytest.fixture
def config() -> BenchStepConfig:
    options = ["data.dir=x", "precision.compute=bf16", "batch.micro_batch_size=4", "transformers_trainer=false"]
    return load_config("bench_step", [*TEST_RECIPE, *options], BenchStepConfig)


def run_with_faults(
    config: BenchStepConfig, faults: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> list[tuple[set, dict]]:
    """The variants measured and failed after each part, if measuring ``faults`` raises."""

    def measured(configs: dict, world: World, outcome: step.Outcome) -> int:
        (name,) = configs
        if name in faults:
            raise torch.OutOfMemoryError(f"no memory for {name}")
        assert configs[name].batch.micro_batch_size == (3 if outcome.variants else 4)
        outcome.variants[name] = step.Figures([1.0])
        return 3

    monkeypatch.setattr(step, "measure_interleaved", measured)
    world = World(0, 0, 1, torch.device("cuda"))
    return [(set(outcome.variants), dict(outcome.failed)) for outcome in step.measure(config, world)]


def test_a_variant_that_fails_does_not_end_the_others(config, monkeypatch) -> None:
    names = list(step.variants(config, torch.device("cuda")))
    assert len(names) > 4
    assert names[-1] == "all"
    parts = run_with_faults(config, (names[2],), monkeypatch)
    assert parts[0] == ({names[0]}, {})
    assert parts[-1] == (set(names) - {names[2]}, {names[2]: f"OutOfMemoryError: no memory for {names[2]}"})


def test_without_a_baseline_there_is_nothing_to_compare_with(config, monkeypatch) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        run_with_faults(config, ("masked positions",), monkeypatch)
