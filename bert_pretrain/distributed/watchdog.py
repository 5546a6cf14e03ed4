"""Watchdog: names the rank that died or is stuck, within a timeout, and exits.

A collective does not report which rank is missing: it blocks, or fails with a broken connection. So every rank writes a
heartbeat into the store through which the ranks met, over a connection of its own. Rank 0 reads all heartbeats, the
other ranks read rank 0's and its verdict: two small messages per rank every few seconds, for any number of ranks. A
rank that finds a dead or stuck peer prints one error per node and calls ``os._exit``, because its main thread is
blocked in a collective.

Local work of any length is progress: a save, a read that is tried again, a compilation. The main thread says what it
does (``busy``), the heartbeats carry it, and no rank is stuck while one of them is busy; rank 0 prints what takes long.
A rank in a collective is never busy, so that a stuck one is found.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch.distributed as dist

from bert_pretrain.distributed.preemption import StopRequest
from bert_pretrain.errors import EXIT_LOST_RANK, ConfigError
from bert_pretrain.options.entry_point import print_error

_ADVICE = "rerun the same command to resume from the newest checkpoint"
_VERDICT = "verdict"


@dataclass
class PeerStatus:
    """The last heartbeat of another rank, and when it was read, by this rank's clock."""

    heartbeat: bytes = b""
    step: int = 0
    host: str = "an unknown host"
    work: str = ""
    """The local work that the rank is busy with, if any."""
    last_seen: float = field(default_factory=time.monotonic)


class Watchdog:
    """Sends this rank's heartbeats and checks those of its peers, in two daemon threads.

    One thread talks to the store, and may block when the network does; the other one checks. Peers count as lost early
    enough for all ranks to have exited after ``timeout`` seconds.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        size: int,
        timeout: float,
        prints_errors: bool = True,
        stop_request: StopRequest | None = None,
    ) -> None:
        self.rank = rank
        self.timeout = timeout
        self.prints_errors = prints_errors
        self.stop_request = stop_request or StopRequest()
        self.interval = min(5.0, timeout / 10)
        self._store = dist.PrefixStore("watchdog", store.clone())  # type: ignore[attr-defined]  # torch's stubs lack it
        self._store.set_timeout(timedelta(seconds=timeout))
        self._heartbeats = self._step = 0
        self._last_progress = time.monotonic()
        self.begun: set[str] = set()
        """All that the main thread was ever busy with."""
        self._work: list[str] = []  # what the main thread is busy with, the innermost last
        self._shown: dict[int, tuple[str, float, float]] = {}  # by rank: its work, since when, the next time to say it
        self._peers = {other: PeerStatus() for other in (range(1, size) if rank == 0 else range(1))}
        self._verdict = ""
        self._stopped, self._exiting = threading.Event(), threading.Lock()
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._exchange_heartbeats, self._check_peers)
        ]
        self._send_heartbeat()
        if rank == 0:
            self._store.set(_VERDICT, "")

    def start(self) -> None:
        """Start checking, once all ranks have connected."""
        self._last_progress = time.monotonic()
        for peer in self._peers.values():
            peer.last_seen = time.monotonic()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop both threads: one inside torch's code at interpreter exit would abort the process."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(timeout=self.interval)

    def report_progress(self, step: int | None = None) -> None:
        """The main thread has made progress; ``step``: the step that it begins, if it begins one."""
        self._last_progress = time.monotonic()
        if step is not None:
            self._step = step

    @contextmanager
    def busy(self, work: str) -> Iterator[None]:
        """Context of local work of the main thread, which is progress as long as it lasts; no collectives in it."""
        self.begun.add(work)
        self._work.append(work)
        try:
            yield
        finally:
            self._last_progress = time.monotonic()
            self._work.pop()

    def collective_failed(self, reason: str) -> None:
        """A collective failed in the main thread: find the rank to blame, print it and exit.

        After a stop request it does not look for long: the launcher kills the other ranks of a node once one has died.
        """
        fault = ""
        for _ in range(12):
            fault = self._verdict or self._find_dead_peer(2.5 * self.interval)
            if fault or self.stop_request.requested:
                break
            time.sleep(self.interval / 2)
        self._exit(fault or f"a connection to another rank broke in step {self._step}", reason)

    def _send_heartbeat(self) -> None:
        self._heartbeats += 1
        self._store.set(
            str(self.rank), json.dumps([self._heartbeats, self._step, socket.gethostname(), self._own_work()])
        )

    def _own_work(self) -> str:
        return next(iter(self._work[-1:]), "")

    def _exchange_heartbeats(self) -> None:
        while not self._stopped.wait(self.interval):
            try:
                self._send_heartbeat()
                heartbeats = self._store.multi_get([str(other) for other in self._peers])
                if self.rank > 0:
                    self._verdict = self._store.get(_VERDICT).decode()
                elif self._verdict:
                    self._store.set(_VERDICT, self._verdict)
            except RuntimeError:  # the store cannot be reached: the peers count as lost after a while
                continue
            for peer, heartbeat in zip(self._peers.values(), heartbeats, strict=True):
                if heartbeat != peer.heartbeat:
                    peer.heartbeat, peer.last_seen = heartbeat, time.monotonic()
                    _, peer.step, peer.host, peer.work = json.loads(heartbeat)

    def _check_peers(self) -> None:
        while not self._stopped.wait(self.interval / 2):
            limit = self.timeout - 3 * self.interval
            self._note_work()
            fault = self._verdict or self._find_dead_peer(limit) or self._find_stuck_rank(limit)
            if fault:
                self._exit(fault)

    def _note_work(self) -> None:
        """On rank 0: count the work of busy ranks as progress; print it after half the timeout, and as it doubles."""
        if self.rank > 0:
            return
        now, seen = time.monotonic(), self._shown
        work = {0: self._own_work()} | {rank: peer.work for rank, peer in self._peers.items()}
        busy = {rank: text for rank, text in work.items() if text}
        if busy:
            self._last_progress = now
        self._shown = {
            rank: seen[rank] if rank in seen and seen[rank][0] == text else (text, now, now + self.timeout / 2)
            for rank, text in busy.items()
        }
        for rank, (text, since, due) in self._shown.items():
            if now < due:
                continue
            host, waited = self._host(rank), now - since
            print(f"rank {rank} on {host}: {text}, for {waited:.0f} s so far; the others wait for it", flush=True)
            self._shown[rank] = text, since, now + waited
            return  # one line, however many ranks do the same

    def _host(self, rank: int) -> str:
        return self._peers[rank].host if rank else socket.gethostname()

    def _find_dead_peer(self, limit: float) -> str:
        """A message if peers sent no heartbeat for ``limit`` seconds; it names the one missing for longest."""
        now = time.monotonic()
        dead = sorted((peer.last_seen, rank) for rank, peer in self._peers.items() if now - peer.last_seen > limit)
        if not dead:
            return ""
        last_seen, rank = dead[0]
        more = f" (and {len(dead) - 1} more)" if len(dead) > 1 else ""
        peer, seconds = self._peers[rank], now - last_seen
        return (
            f"rank {rank} on {peer.host}{more} sent its last heartbeat in step {peer.step}, {seconds:.0f} s ago: "
            "its process or its node died, or the network failed"
        )

    def _find_stuck_rank(self, limit: float) -> str:
        """On rank 0: a message if it made no progress for ``limit`` seconds; it names the rank furthest behind."""
        waited = time.monotonic() - self._last_progress
        if self.rank > 0 or waited < limit:
            return ""
        steps = {0: self._step} | {rank: peer.step for rank, peer in self._peers.items()}
        last = min(steps, key=lambda rank: (steps[rank], rank))
        if steps[last] == max(steps.values()):
            return f"no rank has made progress beyond step {self._step} for {waited:.0f} s, though all are alive"
        return (
            f"rank {last} on {self._host(last)} is alive but stuck in step {steps[last]}; the others have waited for "
            f"it in step {max(steps.values())} for {waited:.0f} s"
        )

    def _exit(self, fault: str, reason: str = "") -> None:
        self._exiting.acquire()  # never released: only one thread prints
        self._verdict = fault
        if self.prints_errors:
            print_error(ConfigError(f"{fault}{f' ({reason})' if reason else ''}; {_ADVICE}"))
        if self.rank == 0 and not self.stop_request.requested:
            time.sleep(2 * self.interval)  # the store dies with this process: first let the others read the verdict
        os._exit(EXIT_LOST_RANK)
