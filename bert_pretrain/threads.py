"""Threads for loops that Numba compiled.

Why not OpenMP: when another process uses the cores, its barriers spin while the thread they wait for is not running,
and a step takes ten times as long. Here each thread takes the next task from one list until none is left, and the
only waiting is for the end of that list, asleep.
"""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field


@dataclass
class Threads:
    """``number`` threads, the calling one counted; between tasks they sleep."""

    number: int
    _others: ThreadPoolExecutor | None = field(init=False)

    def __post_init__(self) -> None:
        self._others = ThreadPoolExecutor(self.number - 1, "loops") if self.number > 1 else None

    def run(self, jobs: Sequence[Callable[[], None]]) -> None:
        """Call every job, in no particular order; each thread takes the next one until none is left."""
        remaining = iter(jobs)  # taking from a list's iterator is atomic

        def work() -> None:
            for job in remaining:
                job()

        others = min(self.number, len(jobs)) - 1
        waiting = [self._others.submit(work) for _ in range(others)] if self._others else []
        work()
        for future in waiting:
            future.result()


_kept = functools.cache(Threads)


def in_parts(loop: Callable[[int, int], None], size: int, least: int, threads: int) -> None:
    """Call ``loop(start, stop)`` over parts of ``range(size)`` of at least ``least``, on up to ``threads`` threads.

    The backward pass of torch runs in a thread of its own, so this one may be any.
    """
    number = max(1, min(threads, size // least))
    bounds = [size * part // number for part in range(number + 1)]
    if number == 1:
        loop(0, size)
    else:
        _kept(number).run([functools.partial(loop, *bounds[part : part + 2]) for part in range(number)])
