import pytest

from bert_pretrain.data.batch_plan import BatchConfig, BatchPlan
from bert_pretrain.errors import ConfigError


@pytest.mark.parametrize("batch", [1, 7, 32, 1000, 65_536])
@pytest.mark.parametrize("micro", [1, 3, 64])
@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_every_sample_is_in_exactly_one_micro_batch(batch: int, micro: int, world: int) -> None:
    world = min(batch, world)
    plan = BatchPlan(batch, micro, world)
    covered = [
        sample for rank in range(world) for start, stop in plan.micro_batches(rank) for sample in range(start, stop)
    ]
    assert covered == list(range(batch))
    sizes = [plan.rank_slice(rank)[1] - plan.rank_slice(rank)[0] for rank in range(world)]
    assert max(sizes) - min(sizes) <= 1
    assert all(0 < stop - start <= micro for rank in range(world) for start, stop in plan.micro_batches(rank))


def test_a_batch_with_fewer_samples_than_ranks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch\.global_batch_size is 3, but there are 4 ranks"):
        BatchPlan(3, 1, 4)


@pytest.mark.parametrize("option", ["global_batch_size", "micro_batch_size"])
def test_sizes_below_one_are_refused(option: str) -> None:
    values = {"global_batch_size": 8, "micro_batch_size": 2, option: 0}
    with pytest.raises(ConfigError, match=f"batch.{option} is 0"):
        BatchConfig(**values)
