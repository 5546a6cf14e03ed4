"""Tokens per second, MFU and the share of time spent waiting for data, over the time that the steps took."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass
class Throughput:
    """Work of all ranks and time, over the steps since the last row.

    A step's time runs from the end of the step before it to its own end, as ``StepResult`` has it: its numbers are read
    while the next step runs, so that the moment of reading says nothing. ``paused`` work belongs to no step.
    """

    measure_peak: Callable[[float], float]
    """FLOP/s of one of the ``devices``, given a rate that it has reached."""
    devices: int
    busy: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext()
    """Context of waiting, which is no fault however long it takes."""
    data_sheet_rate: float | None = None
    """The FLOP/s that the device's maker states, if they are known."""

    def __post_init__(self) -> None:
        self.peak_rate = self.measure_peak(0.0)
        self.restart()

    def restart(self) -> None:
        """Start a new interval, now."""
        self._clear()
        self._since = time.perf_counter()  # end of the last step that is counted
        self._waiting = 0.0  # seconds, of steps that are not counted yet
        self._pauses: list[tuple[float, float]] = []  # start and seconds, since the last step that is counted

    def _clear(self) -> None:
        self.tokens = self.flops = self.waited = self.seconds = 0.0

    def time_waiting(self, items: Iterator[Item]) -> Iterator[Item]:
        """``items``, measuring the time that the consumer waits for them."""
        while True:
            started = time.perf_counter()
            with self.busy("waiting for samples"):
                item = next(items, None)
            self._waiting += time.perf_counter() - started
            if item is None:
                return
            yield item

    def take_waiting(self) -> float:
        """The seconds waited since the last call: those of the step just enqueued."""
        waited, self._waiting = self._waiting, 0.0
        return waited

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context of an evaluation or a save."""
        started = time.perf_counter()
        yield
        self._pauses.append((started, time.perf_counter() - started))

    def count(self, tokens: float, flops: float, waited: float, ended: float) -> None:
        """Count a step that ended at ``ended``, on the clock of ``time.perf_counter``."""
        paused = sum(seconds for started, seconds in self._pauses if started < ended)
        self._pauses = [pause for pause in self._pauses if pause[0] >= ended]  # belong to the next step
        self.tokens += tokens
        self.flops += flops
        self.waited += waited
        self.seconds = self.seconds + ended - self._since - paused
        self._since = ended

    def rates(self) -> dict[str, float]:
        """The metrics of the interval, and start a new one."""
        reached = self.flops / self.seconds / self.devices
        if reached > self.peak_rate:  # the machine was busy when its rate was measured
            with self.paused():
                self.peak_rate = self.measure_peak(reached)
        row = {
            "tokens_per_second": self.tokens / self.seconds,
            "mfu": reached / self.peak_rate,
            "matrix_peak_share": reached / self.peak_rate,  # the name of mfu until version 0.1
            "data_wait_share": self.waited / self.seconds,
        }
        if self.data_sheet_rate is not None:
            row["mfu_data_sheet"] = reached / self.data_sheet_rate
        self._clear()
        return row
