"""The preflight check, errors on several ranks, and the launcher's exit status."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from bert_pretrain.distributed import world as world_module
from bert_pretrain.distributed.launch import exit_status, rendezvous_error
from bert_pretrain.distributed.preflight import check_ranks_agree, environment_facts
from bert_pretrain.distributed.world import World, one_message_for_all_ranks
from bert_pretrain.errors import ConfigError, OutageError, SharedError
from bert_pretrain.launch_environment import Launch
from bert_pretrain.options import entry_point

FACTS = {"torch": "2.13.0", "the set of options": "abc"}


def preflight(*ranks: tuple[str, dict[str, str]]) -> set[str]:
    """The results of ranks with these errors and facts."""
    store, results = dist.HashStore(), []

    def check(rank: int) -> None:
        results.append(check_ranks_agree(store, rank, len(ranks), *ranks[rank]))

    threads = [threading.Thread(target=check, args=(rank,)) for rank in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == len(ranks)
    return set(results)


def test_equal_ranks_pass() -> None:
    assert preflight(("", FACTS), ("", FACTS), ("", FACTS)) == {""}


def test_the_first_difference_is_named_on_every_rank() -> None:
    (text,) = preflight(("", FACTS), ("", FACTS), ("", FACTS | {"torch": "2.12.1"}))
    assert text.startswith("torch is not the same on all nodes: 2.13.0 on rank 0, but 2.12.1 (rank 2 on ")
    assert text.endswith("give every node the same environment and command")


def test_one_rank_s_error_is_returned_on_every_rank() -> None:
    (text,) = preflight(("", FACTS), ("2 processes on a node with 1 GPUs", FACTS | {"the set of options": "xyz"}))
    assert text.startswith("2 processes on a node with 1 GPUs (rank 1 on ")


def test_a_missing_rank_is_named() -> None:
    class OneRankStore:
        def set(self, key: str, value: str) -> None:
            self.written = value

        def wait(self, keys: list[str], timeout: timedelta) -> None:
            if keys != ["preflight/0"]:
                raise dist.DistStoreError("timed out")

        def get(self, key: str) -> str:
            return self.written

    store = OneRankStore()
    text = check_ranks_agree(store, 0, 2, "", FACTS)  # type: ignore[arg-type]
    assert text == store.written == "rank 1 of 2 did not connect in time; see the output of its node"


def test_the_other_ranks_wait_until_rank_0_can_say_who_is_missing() -> None:
    store, results = dist.HashStore(), {}
    limits = {0: timedelta(seconds=0.5), 1: timedelta(seconds=0.5)}

    def check(rank: int) -> None:
        results[rank] = check_ranks_agree(store, rank, 3, "", FACTS, limits[rank])

    threads = [threading.Thread(target=check, args=(rank,)) for rank in limits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    missing = "rank 2 of 3 did not connect in time; see the output of its node"
    assert results == {0: missing, 1: missing}


def test_facts_include_source_and_options() -> None:
    cpu = torch.device("cpu")
    one, other = environment_facts(cpu, "lr: 1"), environment_facts(cpu, "lr: 2")
    assert {name for name in one if one[name] != other[name]} == {"the set of options"}
    assert {"Python", "torch", "transformers", "the device", "bert_pretrain's source"} <= one.keys()


def test_a_single_rank_raises_its_own_error_unchanged() -> None:
    def wrong() -> None:
        raise ConfigError("data.dir is 'x'")

    world = World(0, 0, 1, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"^data.dir is 'x'$"):
        world.run_on_all_ranks(wrong)
    assert world.run_on_all_ranks(lambda: 3) == 3


def test_an_os_error_becomes_a_config_error(tmp_path: Path) -> None:
    world = World(0, 0, 1, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"No such file or directory: .*progress\.json"):
        world.run_on_all_ranks(lambda: (tmp_path / "progress.json").read_text())


class WorldWithFaults(World):
    """A world whose other ranks report ``faults``."""

    faults: tuple[tuple[str, str, int], ...] = ()

    def gather(self, item: Any) -> list[Any]:
        return [item if rank == self.rank else other for rank, other in enumerate(self.faults)]


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
    monkeypatch.setattr(world_module, "rank_label", lambda rank: f" (rank {rank} there)")
    monkeypatch.setattr(
        WorldWithFaults, "faults", tuple((fault, f" (rank {rank} there)", 74) for rank, fault in enumerate(faults))
    )

    def work() -> None:
        if faults[rank]:
            raise OutageError(faults[rank])

    for rank in range(3):
        with pytest.raises(SharedError) as found:
            WorldWithFaults(rank, rank, 3, torch.device("cpu")).run_on_all_ranks(work)
        assert (str(found.value), found.value.exit_status) == (expected, 74)


@pytest.mark.parametrize(
    ("error", "rank", "local_rank", "connected", "printed"),
    [
        (SharedError("x"), 0, 0, True, "error: x\n"),
        (SharedError("x"), 1, 1, True, ""),
        (SharedError("x"), 8, 0, False, ""),
        (ConfigError("x"), 1, 1, True, "error: x (rank 1 on n1)\n"),
        (ConfigError("x"), 0, 0, True, "error: x (rank 0 on n1)\n"),
        (ConfigError("x"), 0, 0, False, "error: x\n"),
        (ConfigError("x"), 8, 0, False, "error: x\n"),
        (ConfigError("x"), 9, 1, False, "error: x\n"),
    ],
)
def test_a_rank_s_own_error_is_always_printed(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    error: ConfigError,
    rank: int,
    local_rank: int,
    connected: bool,
    printed: str,
) -> None:
    launch, waits = Launch(rank, 16, local_rank, 8), []
    monkeypatch.setattr(world_module, "read_launch", lambda: launch)
    monkeypatch.setattr(entry_point, "local_rank", lambda: launch.local_rank)
    monkeypatch.setattr(entry_point.time, "sleep", waits.append)
    monkeypatch.setattr(entry_point.signal, "signal", lambda *_: None)
    monkeypatch.setattr(dist, "is_initialized", lambda: connected)
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    monkeypatch.setattr(socket, "gethostname", lambda: "n1")
    exits: list[int] = []  # with a process group, it must exit by os._exit
    monkeypatch.setattr(world_module.os, "_exit", exits.append)

    @one_message_for_all_ranks
    def fail(_: None) -> None:
        raise error

    with nullcontext() if connected else pytest.raises(SystemExit):
        fail(None)
    assert capsys.readouterr().err == printed
    assert exits == ([2] if connected else [])
    assert len(waits) == (local_rank > 0 and not connected)  # a launcher ends it before it prints


def failed(code: int) -> SimpleNamespace:
    return SimpleNamespace(get_first_failure=lambda: (0, SimpleNamespace(exitcode=code)))


@pytest.mark.parametrize(("code", "expected"), [(75, 75), (76, 76), (2, 2), (1, 1), (-9, 1), (-15, 1)])
def test_the_launcher_s_exit_status(code: int, expected: int) -> None:
    assert exit_status(failed(code)) == expected  # type: ignore[arg-type]


def test_a_failed_rendezvous_is_reported_on_one_line() -> None:
    arguments = SimpleNamespace(rdzv_endpoint="", master_addr="n0", master_port=29500, nnodes="4")
    text = str(rendezvous_error(arguments, RuntimeError("timed out\nframe 1\nframe 2")))  # type: ignore[arg-type]
    assert text.startswith("the 4 nodes did not meet at n0:29500 (timed out); check the address")
    assert "\n" not in text


def test_rank_0_keeps_the_store_until_the_others_have_read_what_is_wrong() -> None:
    """Rank 0's node serves the store: if it exits first, a slow rank fails with a broken connection."""
    store, order = dist.HashStore(), []

    class Slow:
        set, wait = staticmethod(store.set), staticmethod(store.wait)

        @staticmethod
        def get(key: str) -> bytes:
            time.sleep(0.3)
            order.append("rank 1 reads")
            return store.get(key)

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(check_ranks_agree, Slow(), 1, 2, "", {"torch": "1"})
        problem = check_ranks_agree(store, 0, 2, "", {"torch": "2"})
        order.append("rank 0 leaves")
        assert slow.result() == problem
    assert "torch is not the same on all nodes" in problem
    assert order == ["rank 1 reads", "rank 0 leaves"]
