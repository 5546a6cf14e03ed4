from itertools import islice

import numpy as np
import pytest

from bert_pretrain.data.sample_order import SampleOrder, permute


def stream(order: SampleOrder, start: int, stop: int) -> np.ndarray:
    parts = []
    for run in order.slices(start, stop):
        first = order.block_start(run.epoch, run.block)
        inner = order.block_permutation(run.epoch, run.block)
        parts.append((first + inner[run.start : run.stop]) % order.samples)
    return np.concatenate(parts)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 100, 1023, 4096])
def test_permute_is_a_bijection(size: int) -> None:
    assert sorted(permute(index, size, 11, 3) for index in range(size)) == list(range(size))


@pytest.mark.parametrize(("samples", "block"), [(1, 8), (7, 8), (8, 8), (100, 8), (1003, 32), (64, 1)])
def test_each_sample_comes_once_an_epoch(samples: int, block: int) -> None:
    order = SampleOrder(5, samples, block)
    for epoch in range(3):
        assert sorted(stream(order, epoch * samples, (epoch + 1) * samples)) == list(range(samples))


def test_any_cut_gives_the_same_stream() -> None:
    order = SampleOrder(5, 103, 8)
    whole = stream(order, 0, 309)
    for size in (1, 5, 8, 60):
        parts = [stream(order, at, min(at + size, 309)) for at in range(0, 309, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_epochs_have_different_batches() -> None:
    order = SampleOrder(5, 1024, 32)
    batches = [
        {frozenset(stream(order, at, at + 64)) for at in range(epoch * 1024, (epoch + 1) * 1024, 64)}
        for epoch in range(4)
    ]
    for first in range(4):
        for second in range(first):
            assert not batches[first] & batches[second]


def test_the_incomplete_block_holds_other_samples_each_epoch() -> None:
    order = SampleOrder(5, 103, 8)
    tails = {frozenset(stream(order, epoch * 103 + 96, epoch * 103 + 103)) for epoch in range(6)}
    assert len(tails) > 3


def test_the_order_depends_on_the_seed_only() -> None:
    first, again, other = (stream(SampleOrder(seed, 500, 16), 0, 500) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first == other).mean() < 0.1


def test_neighbouring_positions_are_not_neighbouring_samples() -> None:
    """Blocks, and the samples within them, are permuted: no long runs of consecutive samples remain."""
    walk = np.diff(stream(SampleOrder(3, 4096, 64), 0, 4096))
    assert (walk == 1).mean() < 0.05


def test_finding_a_position_takes_constant_time() -> None:
    """The same number of slices for step 0 and for step a billion."""
    order = SampleOrder(3, 10**9, 128)
    for step in (0, 10**9):
        assert len(list(order.slices(step * 4096, (step + 1) * 4096))) in (32, 33)


@pytest.mark.parametrize(("samples", "block", "window"), [(1003, 8, 100), (1024, 8, 128), (103, 8, 8), (50, 8, 400)])
def test_with_a_window_an_epoch_reads_one_part_after_the_other(samples: int, block: int, window: int) -> None:
    order = SampleOrder(5, samples, block, window)
    per_epoch = []
    for epoch in range(3):
        whole = stream(order, epoch * samples, (epoch + 1) * samples)
        assert sorted(whole) == list(range(samples))
        parts, position = list(islice(order.windows(epoch * samples), 1 + samples // block)), 0
        for first, number in parts:
            if position < samples:
                visited = set(whole[position : position + number])
                assert visited == {(first + sample) % samples for sample in range(number)}
                position += number
        assert position == samples
        per_epoch.append(parts[0])
    assert len(set(per_epoch)) == 3
    halves = [stream(order, 0, samples // 2), stream(order, samples // 2, samples)]
    np.testing.assert_array_equal(np.concatenate(halves), stream(order, 0, samples))
    later = next(order.windows(samples + samples // 2))
    assert stream(order, samples + samples // 2, samples + samples // 2 + 1)[0] in {
        (later[0] + sample) % samples for sample in range(later[1])
    }
