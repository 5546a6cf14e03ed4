"""Dead, stuck and healthy ranks: real processes with a real store, without collectives."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from bert_pretrain.distributed import watchdog as watchdog_module
from bert_pretrain.distributed.watchdog import Watchdog
from bert_pretrain.errors import EXIT_LOST_RANK

Rank = tuple[multiprocessing.Process, Path]
fork = multiprocessing.get_context("fork")  # torch is imported only once
TIMEOUT, HEALTHY = 5.0, 12


def rank_main(rank: int, port: int, last: int, out: Path) -> None:
    """Five steps a second up to ``last``; then healthy ranks return, the others hang."""
    sys.stderr = out.open("w", encoding="utf-8")
    watchdog = Watchdog(dist.TCPStore("127.0.0.1", port, is_master=False), rank, 3, TIMEOUT)
    out.with_suffix(".ready").touch()
    while len(list(out.parent.glob("*.ready"))) < 3:
        time.sleep(0.05)
    watchdog.start()
    for step in range(1, last + 1):
        watchdog.report_progress(step)
        time.sleep(0.2)
    if last != HEALTHY:
        time.sleep(60)
    watchdog.stop()


def serve(sender: Connection) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True)
    sender.send(store.port)
    time.sleep(600)


@pytest.fixture
def port() -> Iterator[int]:
    """Of a store that a process of its own serves: its threads take locks, which a fork of this one would copy."""
    receiver, sender = fork.Pipe(duplex=False)
    fork.Process(target=serve, args=(sender,), daemon=True).start()
    yield receiver.recv()
    for process in multiprocessing.active_children():
        process.kill()


def start(port: int, folder: Path, *last: int) -> list[Rank]:
    """Start three ranks with these last steps; return when all are ready."""
    ranks = []
    for rank, step in enumerate(last):
        out = folder / str(rank)
        process = fork.Process(target=rank_main, args=(rank, port, step, out), daemon=True)
        process.start()
        ranks.append((process, out))
    while len(list(folder.glob("*.ready"))) < 3:
        time.sleep(0.05)
    return ranks  # type: ignore[return-value]


def result(rank: Rank) -> tuple[str, int | None]:
    """Its standard error and exit status."""
    process, out = rank
    process.join(120)
    status = process.exitcode
    process.kill()
    return out.read_text(), status


def test_healthy_ranks_are_left_alone(port: int, tmp_path: Path) -> None:
    assert [result(rank) for rank in start(port, tmp_path, HEALTHY, HEALTHY, HEALTHY)] == [("", 0)] * 3


@pytest.mark.parametrize("frozen", [0, 2])
def test_a_rank_without_heartbeats_is_named_by_all_others(port: int, tmp_path: Path, frozen: int) -> None:
    ranks = start(port, tmp_path, 99, 99, 99)
    time.sleep(1.5)
    os.kill(ranks[frozen][0].pid or 0, signal.SIGSTOP)
    for number in {0, 1, 2} - {frozen}:
        text, status = result(ranks[number])
        assert f"error: rank {frozen} on {socket.gethostname()} sent its last heartbeat in step " in text
        assert status == EXIT_LOST_RANK


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_without_heartbeats_is_reported_within_the_timeout(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """By a clock that only the watchdog's own waiting advances."""
    clock = 0.0

    def wait(seconds: float) -> bool:
        nonlocal clock
        clock += seconds
        return False

    def leave(status: int) -> None:
        raise SystemExit(status)

    watchdog = Watchdog(dist.HashStore(), rank, 2, TIMEOUT)
    monkeypatch.setattr(watchdog_module, "time", SimpleNamespace(monotonic=lambda: clock, sleep=wait))
    monkeypatch.setattr(watchdog_module, "os", SimpleNamespace(_exit=leave))
    monkeypatch.setattr(watchdog._stopped, "wait", wait)
    (peer,) = watchdog._peers.values()
    peer.last_seen = 0.0
    with pytest.raises(SystemExit, match=str(EXIT_LOST_RANK)):
        watchdog._check_peers()
    assert TIMEOUT / 2 < clock <= TIMEOUT


def test_a_stuck_rank_is_named_by_all(port: int, tmp_path: Path) -> None:
    for text, status in [result(rank) for rank in start(port, tmp_path, 7, 3, 7)]:
        assert f"error: rank 1 on {socket.gethostname()} is alive but stuck in step 3; the others have waited" in text
        assert "for it in step 7 for" in text
        assert status == EXIT_LOST_RANK


class Exited(Exception):
    """The watchdog ended the process."""


def run_checks(watchdog: Watchdog, monkeypatch: pytest.MonkeyPatch, checks: int, heartbeat: Callable[[], None]) -> str:
    """``checks`` checks by a clock that only the watchdog's waiting advances; "" or the error that it ends with."""
    clock = watchdog_module.time.monotonic()
    for peer in watchdog._peers.values():
        peer.last_seen = clock
    watchdog._last_progress, left = clock, checks

    def wait(seconds: float) -> bool:
        nonlocal clock, left
        clock, left = clock + seconds, left - 1
        for peer in watchdog._peers.values():
            peer.last_seen = clock  # all are alive
        heartbeat()
        return left < 0

    def leave(fault: str, reason: str = "") -> None:
        raise Exited(fault)

    monkeypatch.setattr(watchdog_module, "time", SimpleNamespace(monotonic=lambda: clock, sleep=wait))
    monkeypatch.setattr(watchdog._stopped, "wait", wait)
    monkeypatch.setattr(watchdog, "_exit", leave)
    try:
        watchdog._check_peers()
    except Exited as error:
        return str(error)
    return ""


@pytest.mark.parametrize("busy_rank", [0, 1])
def test_local_work_of_any_length_is_progress_and_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, busy_rank: int
) -> None:
    """40 checks are ten timeouts; rank 0 waits for rank 1, or itself for a disk."""
    watchdog = Watchdog(dist.HashStore(), 0, 2, TIMEOUT)
    watchdog._peers[1].work = "reading the shards" if busy_rank else ""
    with watchdog.busy("reading the shards") if not busy_rank else nullcontext():
        assert run_checks(watchdog, monkeypatch, 200, lambda: None) == ""
    lines = capsys.readouterr().out.splitlines()
    assert 2 <= len(lines) <= 8  # at half the timeout, and as the time doubles
    assert all(line.startswith(f"rank {busy_rank} on ") and "reading the shards, for " in line for line in lines)


def test_a_rank_stuck_in_a_collective_is_found_after_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1 is busy for many timeouts, then it hangs."""
    watchdog, heartbeats = Watchdog(dist.HashStore(), 0, 2, TIMEOUT), 0

    def heartbeat() -> None:
        nonlocal heartbeats
        heartbeats += 1
        watchdog._peers[1].work = "saving" if heartbeats < 100 else ""

    assert "no rank has made progress" in run_checks(watchdog, monkeypatch, 1000, heartbeat)
    assert 100 < heartbeats < 100 + 4 * TIMEOUT / watchdog.interval


def test_a_rank_that_hangs_before_the_first_step_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    watchdog = Watchdog(dist.HashStore(), 0, 2, TIMEOUT)
    assert "no rank has made progress" in run_checks(watchdog, monkeypatch, 1000, lambda: None)


def test_heartbeats_carry_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.HashStore()
    first, second = Watchdog(store, 0, 2, TIMEOUT), Watchdog(store, 1, 2, TIMEOUT)
    waits = iter([False, True])
    monkeypatch.setattr(first._stopped, "wait", lambda _: next(waits))
    with second.busy("outer"), second.busy("saving"):
        second._send_heartbeat()
    first._exchange_heartbeats()
    assert first._peers[1].work == "saving"
