import pytest

from bert_pretrain.data.batch_plan import BatchConfig, BatchPlan, even_size
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


WORLDS = [  # global batch, ranks, samples that fit, micro-batches of a rank, their size
    (65_536, 256, 255, 2, 128),  # by 1, 2, 3, 4, 6, 8 ...: 192 and 64, padded to 192
    (65_536, 256, 256, 1, 256),
    (65_536, 256, 1000, 1, 256),  # a share smaller than what fits
    (65_536, 256, 127, 3, 86),  # 258 for 256
    (65_536, 1024, 63, 2, 32),
    (65_536, 8, 255, 33, 249),  # 8,217 for 8,192
    (65_536, 1, 192, 342, 192),
    (65_536, 3, 100, 219, 100),  # 21,846 samples: 21,900
    (32_768, 1024, 31, 2, 16),
    (32_768, 96, 171, 2, 171),  # shares of 341 and 342
    (4096, 7, 100, 6, 98),
    (4096, 64, 48, 2, 32),
    (1000, 6, 25, 7, 24),
    (257, 256, 8, 1, 2),  # one rank has two samples, and all wait for it
    (256, 1, 3, 86, 3),
    (100, 1, 33, 4, 25),
    (14, 2, 3, 7, 1),  # 7 in 3, 3, 1 would pad to 9
    (33, 1, 16, 3, 11),
    (12, 5, 2, 3, 1),  # shares of 2 and 3
    (1, 1, 1, 1, 1),
]


@pytest.mark.parametrize(("batch", "ranks", "fit", "count", "size"), WORLDS)
def test_equal_micro_batches_pad_at_most_5_percent(batch: int, ranks: int, fit: int, count: int, size: int) -> None:
    """Work done, with each micro-batch padded to one size, over the samples of the rank that has most."""
    share = -(-batch // ranks)
    found = even_size(share, fit)
    plan = BatchPlan(batch, found, ranks)
    assert (found, plan.accumulation(ranks - 1)) == (size, count)
    assert found <= fit
    done = sum(plan.accumulation(rank) for rank in range(ranks)) * found
    assert share <= plan.accumulation(ranks - 1) * found <= 1.05 * share
    assert done <= 1.05 * share * ranks
    assert batch % ranks or done <= 1.05 * batch


def test_no_share_pads_more_whatever_fits() -> None:
    for share in range(1, 300):
        for fit in range(1, share + 5):
            size = even_size(share, fit)
            assert 1 <= size <= fit
            assert -(-share // size) * size <= 1.05 * share
