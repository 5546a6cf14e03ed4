"""Which rank is gone, or holds up the others: said by name within a timeout.

A collective does not say who is missing: it waits, or fails with a torn connection. So every rank writes a sign of life
into the store through which the ranks met, beside the training and over a connection of its own. Rank 0 reads all of
them, the others read rank 0's and its verdict: two small messages a rank every few seconds, whatever the size. Who
finds a rank silent, or the run without progress, says so once a node and ends its process, whose main thread waits in
a collective that nobody can call off.
"""

import json
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta

import torch.distributed as dist

from bert_pretrain.distributed.preemption import StopRequest

EXIT_LOST_RANK = 76
"""Exit status of a run that lost a rank (EX_PROTOCOL of sysexits.h): start it again."""
_GO_ON = "the same command goes on from the newest checkpoint"
_VERDICT = "verdict"


@dataclass
class PeerStatus:
    """The last that was heard of a rank, and when, by the clock of who heard it."""

    text: bytes = b""
    step: int = 0
    host: str = "an unknown host"
    heard: float = field(default_factory=time.monotonic)


class Watchdog:
    """This rank's sign of life, and its look at those of others.

    Two daemon threads: one talks to the store, and is stuck where the network is; the other judges. Silence is judged
    early enough for all ranks to have ended when ``timeout`` seconds are over.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        size: int,
        timeout: float,
        says: bool = True,
        stop: StopRequest | None = None,
    ) -> None:
        self.rank, self.timeout, self.says, self.stop = rank, timeout, says, stop or StopRequest()
        self.interval = min(5.0, timeout / 10)
        self._store = dist.PrefixStore("watchdog", store.clone())  # type: ignore[attr-defined]  # torch's stubs lack it
        self._store.set_timeout(timedelta(seconds=timeout))
        self._heartbeats = self._step = 0
        self._last_progress = float("inf")  # nothing is late before the first step
        self._peers = {other: PeerStatus() for other in (range(1, size) if rank == 0 else range(1))}
        self._verdict = ""
        self._ended, self._leaving = threading.Event(), threading.Lock()
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._exchange_heartbeats, self._watch_peers)
        ]
        self._send_heartbeat()
        if rank == 0:
            self._store.set(_VERDICT, "")

    def start(self) -> None:
        """Begin; once all ranks are there."""
        for peer in self._peers.values():
            peer.heard = time.monotonic()
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Stop watching; no thread is in torch's code when the interpreter ends, which would abort it."""
        self._ended.set()
        for thread in self._threads:
            thread.join(timeout=self.interval)

    def report_progress(self, step: int | None = None) -> None:
        """The main thread gets on, in ``step`` where one begins."""
        self._last_progress = time.monotonic()
        if step is not None:
            self._step = step

    def collective_failed(self, reason: str) -> None:
        """A collective has failed in the main thread: find out whose fault it is, say it, and end the process.

        After a request to stop that is the launcher's work, which ends the other ranks of a node when one has died.
        """
        found = ""
        for _ in range(12):
            found = self._verdict or self._silent_peer(2.5 * self.interval)
            if found or self.stop.requested:
                break
            time.sleep(self.interval / 2)
        self._leave(found or f"a connection to another rank broke in step {self._step}", reason)

    def _send_heartbeat(self) -> None:
        self._heartbeats += 1
        self._store.set(str(self.rank), json.dumps([self._heartbeats, self._step, socket.gethostname()]))

    def _exchange_heartbeats(self) -> None:
        while not self._ended.wait(self.interval):
            try:
                self._send_heartbeat()
                texts = self._store.multi_get([str(other) for other in self._peers])
                if self.rank > 0:
                    self._verdict = self._store.get(_VERDICT).decode()
                elif self._verdict:
                    self._store.set(_VERDICT, self._verdict)
            except RuntimeError:  # the store is out of reach: its silence is judged
                continue
            for peer, text in zip(self._peers.values(), texts, strict=True):
                if text != peer.text:
                    peer.text, peer.heard = text, time.monotonic()
                    _, peer.step, peer.host = json.loads(text)

    def _watch_peers(self) -> None:
        while not self._ended.wait(self.interval / 2):
            found = self._verdict or self._silent_peer(self.timeout - 3 * self.interval) or self._stuck_rank()
            if found:
                self._leave(found, "")

    def _silent_peer(self, limit: float) -> str:
        """Who was not heard of for ``limit`` seconds, the longest silent one by name."""
        now = time.monotonic()
        silent = sorted((peer.heard, rank) for rank, peer in self._peers.items() if now - peer.heard > limit)
        if not silent:
            return ""
        (heard, rank), others = silent[0], len(silent) - 1
        return (
            f"rank {rank} on {self._peers[rank].host}{f' and {others} more' if others else ''} fell silent in step "
            f"{self._peers[rank].step}, {now - heard:.0f} s ago: its process, its machine or the network to it is gone"
        )

    def _stuck_rank(self) -> str:
        """On rank 0: who keeps the others waiting for nearly ``timeout`` seconds, by the steps that they are in."""
        waited = time.monotonic() - self._last_progress
        if self.rank > 0 or waited < self.timeout - 3 * self.interval:
            return ""
        steps = {0: self._step} | {rank: peer.step for rank, peer in self._peers.items()}
        last = min(steps, key=lambda rank: (steps[rank], rank))
        if steps[last] == max(steps.values()):
            return f"no rank has got beyond step {self._step} for {waited:.0f} s, though all processes are alive"
        host = self._peers[last].host if last else socket.gethostname()
        return (
            f"rank {last} on {host} is alive but stuck in step {steps[last]}; the others have waited for it in step "
            f"{max(steps.values())} for {waited:.0f} s"
        )

    def _leave(self, found: str, reason: str) -> None:
        self._leaving.acquire()  # for good: said once
        self._verdict = found
        if self.says:
            why = f" ({reason})" if reason else ""
            print(f"error: {found}{why}; {_GO_ON}", file=sys.stderr, flush=True)
        if self.rank == 0 and not self.stop.requested:
            time.sleep(2 * self.interval)  # the store ends with this node; the others hear first
        os._exit(EXIT_LOST_RANK)
