"""The roll call before any collective, and what a launcher's failures stand for."""

import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from bert_pretrain.distributed import world as distributed
from bert_pretrain.distributed.launch import not_met, status
from bert_pretrain.distributed.preflight import check_ranks_agree, environment_facts
from bert_pretrain.distributed.world import World, pick_device, report_once
from bert_pretrain.errors import ConfigError, SharedError

FACTS = {"torch": "2.13.0", "the set of options": "abc"}


def verdicts(*ranks: tuple[str, dict[str, str]]) -> set[str]:
    """What each rank, with its fault and its facts, hears."""
    store, heard = dist.HashStore(), []

    def call(rank: int) -> None:
        heard.append(check_ranks_agree(store, rank, len(ranks), *ranks[rank]))

    threads = [threading.Thread(target=call, args=(rank,)) for rank in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(heard) == len(ranks)
    return set(heard)


def test_equal_ranks_hear_nothing() -> None:
    assert verdicts(("", FACTS), ("", FACTS), ("", FACTS)) == {""}


def test_every_rank_hears_the_first_difference_by_name() -> None:
    (text,) = verdicts(("", FACTS), ("", FACTS), ("", FACTS | {"torch": "2.12.1"}))
    assert text.startswith("torch is not the same on all nodes: 2.13.0 here, 2.12.1 there (rank 2 on ")
    assert text.endswith("give every node the same environment and command")


def test_a_fault_of_one_rank_is_said_on_all() -> None:
    (text,) = verdicts(("", FACTS), ("2 processes on a node with 1 GPUs", FACTS | {"the set of options": "xyz"}))
    assert text.startswith("2 processes on a node with 1 GPUs (rank 1 on ")


def test_a_rank_that_does_not_come_is_named() -> None:
    class Empty:
        def set(self, key: str, value: str) -> None:
            self.said = (key, value)

        def get(self, key: str) -> str:
            if key == "here/0":
                return '["", "", {"torch": "2.13.0", "the set of options": "abc"}]'
            raise dist.DistStoreError("timed out")

    store = Empty()
    text = check_ranks_agree(store, 0, 2, "", FACTS)  # type: ignore[arg-type]
    assert text == "rank 1 of 2 did not come; see the output of its node"
    assert store.said == ("faults", text)


def test_facts_know_a_changed_source_and_changed_options() -> None:
    cpu = torch.device("cpu")
    one, other = environment_facts(cpu, "lr: 1"), environment_facts(cpu, "lr: 2")
    assert {name for name in one if one[name] != other[name]} == {"the set of options"}
    assert {"Python", "torch", "transformers", "the device", "bert_pretrain's source"} <= one.keys()


def test_too_few_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto", 1, 2) == torch.device("cuda", 1)
    for local_rank in range(4):  # every rank of the node finds it, so the first one can say it
        with pytest.raises(ConfigError, match="4 processes on a node with 2 GPUs"):
            pick_device("auto", local_rank, 4)


def test_one_rank_raises_its_own_mistake_unchanged() -> None:
    def wrong() -> None:
        raise ConfigError("data.dir is 'x'")

    world = World(0, 0, 1, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"^data.dir is 'x'$"):
        world.run_on_all_ranks(wrong)
    assert world.run_on_all_ranks(lambda: 3) == 3


def test_what_the_file_system_refuses_counts_as_a_mistake(tmp_path: Path) -> None:
    world = World(0, 0, 1, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"No such file or directory: .*progress\.json"):
        world.run_on_all_ranks(lambda: (tmp_path / "progress.json").read_text())


class Peers(World):
    """A world in which the others have said what stands in ``heard``."""

    heard: tuple[tuple[str, str], ...] = ()

    def gather(self, said: Any) -> list[Any]:
        return [said if place == self.rank else other for place, other in enumerate(self.heard)]


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        (("", "no tokenizer", "no shards"), "no tokenizer (rank 1 there)"),
        (("no tokenizer", "", ""), "no tokenizer (rank 0 there)"),
        (("no tokenizer",) * 3, "no tokenizer"),
    ],
)
def test_the_lowest_rank_that_fails_is_named_unless_all_do(
    monkeypatch: pytest.MonkeyPatch, faults: tuple[str, ...], expected: str
) -> None:
    monkeypatch.setattr(distributed, "whose", lambda rank: f" (rank {rank} there)")
    monkeypatch.setattr(Peers, "heard", tuple((fault, f" (rank {rank} there)") for rank, fault in enumerate(faults)))

    def work() -> None:
        if faults[rank]:
            raise ConfigError(faults[rank])

    for rank in range(3):
        with pytest.raises(SharedError) as found:
            Peers(rank, rank, 3, torch.device("cpu")).run_on_all_ranks(work)
        assert str(found.value) == expected


@pytest.mark.parametrize(
    ("error", "rank", "local_rank", "met", "printed"),
    [
        (SharedError("x"), 0, 0, True, "error: x\n"),
        (SharedError("x"), 1, 1, True, ""),
        (SharedError("x"), 8, 0, False, ""),
        (ConfigError("x"), 1, 1, True, "error: x (rank 1 on n1)\n"),
        (ConfigError("x"), 0, 0, True, "error: x (rank 0 on n1)\n"),
        (ConfigError("x"), 0, 0, False, "error: x\n"),
        (ConfigError("x"), 8, 0, False, "error: x\n"),
        (ConfigError("x"), 9, 1, False, ""),
    ],
)
def test_no_rank_ends_in_silence_for_a_mistake_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    error: ConfigError,
    rank: int,
    local_rank: int,
    met: bool,
    printed: str,
) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    monkeypatch.setattr(dist, "is_initialized", lambda: met)
    monkeypatch.setattr(socket, "gethostname", lambda: "n1")
    ended: list[int] = []  # with a group joined, the interpreter must not end by itself
    monkeypatch.setattr(distributed.os, "_exit", ended.append)
    report_once(error)
    assert capsys.readouterr().err == printed
    assert ended == ([2] if met else [])


def failed(code: int) -> SimpleNamespace:
    return SimpleNamespace(get_first_failure=lambda: (0, SimpleNamespace(exitcode=code)))


@pytest.mark.parametrize(("code", "expected"), [(75, 75), (2, 2), (1, 1), (-9, 1), (-15, 1)])
def test_the_launchers_status(code: int, expected: int) -> None:
    assert status(failed(code)) == expected  # type: ignore[arg-type]


def test_nodes_that_do_not_meet_are_one_line() -> None:
    place = SimpleNamespace(rdzv_endpoint="", master_addr="n0", master_port=29500, nnodes="4")
    text = str(not_met(place, RuntimeError("timed out\nframe 1\nframe 2")))  # type: ignore[arg-type]
    assert text.startswith("the 4 nodes did not meet at n0:29500 (timed out); check the address")
    assert "\n" not in text
