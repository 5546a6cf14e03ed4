"""The largest micro-batch that fits, agreed on by all ranks."""

import threading
from dataclasses import dataclass, field

import pytest

from bert_pretrain.batch_plan import BatchConfig
from bert_pretrain.errors import ConfigError
from bert_pretrain.micro_batch_size import most_that_fit


@dataclass
class Rank:
    """A rank of three that are threads here: the smallest number needs all of them, as a collective does."""

    number: int
    barrier: threading.Barrier
    said: dict[int, int]
    asked: list[int] = field(default_factory=list)

    def smallest(self, number: int) -> int:
        self.said[self.number] = number
        self.barrier.wait(timeout=10)
        found = min(self.said.values())
        self.barrier.wait(timeout=10)
        return found


@pytest.mark.parametrize(
    ("limit", "room", "expected"),
    [
        (1000, (1000, 1000, 1000), 1000),
        (1000, (100, 27, 64), 24),
        (1000, (1, 500, 500), 1),
        (1000, (0, 500, 500), 0),
        (5, (100, 100, 100), 5),
        (1, (9, 9, 9), 1),
    ],
)
def test_ranks_with_unlike_room_agree(limit: int, room: tuple[int, ...], expected: int) -> None:
    barrier, said, found = threading.Barrier(3), {}, {}
    ranks = [Rank(number, barrier, said) for number in range(3)]

    def run(rank: Rank) -> None:
        def fits(size: int) -> bool:
            rank.asked.append(size)
            return size <= room[rank.number]

        found[rank.number] = most_that_fit(limit, fits, rank)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert found == dict.fromkeys(range(3), expected)
    assert ranks[0].asked == ranks[1].asked == ranks[2].asked
    assert max(ranks[0].asked) <= limit


def test_on_a_cpu_it_follows_from_the_length() -> None:
    assert [BatchConfig(64, "auto").samples_at_once(length) for length in (64, 128, 512, 4096)] == [16, 8, 2, 1]
    assert BatchConfig(64, 5).samples_at_once(64) == 5


@pytest.mark.parametrize("size", [0, -1, "many", ""])
def test_other_sizes_are_refused(size: int | str) -> None:
    with pytest.raises(ConfigError, match=r"batch\.micro_batch_size is .*1 or more, or auto"):
        BatchConfig(64, size)
