"""The largest micro-batch that fits on all ranks."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch

from bert_pretrain.data.batch_plan import BatchConfig
from bert_pretrain.distributed.world import World
from bert_pretrain.errors import ConfigError
from bert_pretrain.model.options import PrecisionConfig
from bert_pretrain.model.precision import MixedPrecision
from bert_pretrain.training.micro_batch_size import memory_budget, micro_batch_that_fits, most_that_fit
from tests.bert_pretrain.model.test_bert import build
from tests.conftest import HANGS, LENGTH, PREDICTIONS


@dataclass
class Rank:
    """One of three ranks, here threads: ``gather`` waits for all of them, as a collective does."""

    number: int
    barrier: threading.Barrier
    answers: dict[int, bool]
    tried: list[int] = field(default_factory=list)

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        yield

    def gather(self, answer: bool) -> list[bool]:
        self.answers[self.number] = answer
        self.barrier.wait(timeout=HANGS)
        answers = list(self.answers.values())
        self.barrier.wait(timeout=HANGS)
        return answers


@pytest.mark.parametrize(
    ("limit", "capacities", "expected"),
    [
        (1000, (1000, 1000, 1000), 1000),
        (1000, (100, 27, 64), 27),
        (1000, (999, 1000, 1000), 999),
        (1000, (1, 500, 500), 1),
        (1000, (0, 500, 500), 0),
        (5, (100, 100, 100), 5),
        (1, (9, 9, 9), 1),
    ],
)
def test_ranks_with_different_memory_agree(limit: int, capacities: tuple[int, ...], expected: int) -> None:
    barrier, answers, found = threading.Barrier(3), {}, {}
    ranks = [Rank(number, barrier, answers) for number in range(3)]

    def run(rank: Rank) -> None:
        def fits(size: int) -> bool:
            rank.tried.append(size)
            return size <= capacities[rank.number]

        found[rank.number] = most_that_fit(limit, fits, rank)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=HANGS)
    assert found == dict.fromkeys(range(3), expected)
    assert ranks[0].tried == ranks[1].tried == ranks[2].tried
    assert max(ranks[0].tried) <= limit


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, whose memory decides the size")
def test_on_a_gpu_several_samples_fit_and_no_gradients_are_left() -> None:
    device = torch.device("cuda")
    model = build().to(device)
    precision = MixedPrecision(PrecisionConfig("bf16", 1.0, 1, True, False), device)
    assert micro_batch_that_fits(model, precision, World(0, 0, 1, device), 64, LENGTH, PREDICTIONS) == 64
    assert all(parameter.grad is None for parameter in model.parameters())
    free, total = torch.cuda.mem_get_info(device)
    with torch.cuda.device(device):
        torch.cuda.set_per_process_memory_fraction(min(1.0, 200e6 / total))
        try:
            size = micro_batch_that_fits(model, precision, World(0, 0, 1, device), 10**7, LENGTH, PREDICTIONS)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    assert 1 < size < 10**6
    assert free > 200e6


def test_on_a_cpu_the_size_depends_on_the_length() -> None:
    assert [BatchConfig(64, "auto").samples_at_once(length) for length in (64, 128, 512, 4096)] == [32, 16, 4, 1]
    assert BatchConfig(64, 5).samples_at_once(64) == 5


@pytest.mark.parametrize("size", [0, -1, "many", ""])
def test_other_sizes_are_refused(size: int | str) -> None:
    with pytest.raises(ConfigError, match=r"batch\.micro_batch_size is .*1 or more, or auto"):
        BatchConfig(64, size)


def test_memory_that_others_use_is_not_planned_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """80 GB, of which others have 30 and torch's allocator holds 10: 50 in all, and 1e9 moments of 8 bytes."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (40e9, 80e9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 10e9)
    assert memory_budget(torch.device("cuda"), 10**9) == pytest.approx(0.92 * 50e9 - 8e9)
