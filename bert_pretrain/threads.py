"""A thread pool for Numba-compiled loops.

OpenMP is not used: if another process takes a core, its barriers spin while the thread they wait for is not running,
and a step takes ten times as long. Here each thread takes the next task from one list, and the only wait is for the end
of the list, asleep.
"""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor


class Threads:
    """``number`` threads, including the calling one; idle threads sleep."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._others = ThreadPoolExecutor(number - 1, "loops") if number > 1 else None

    def run(self, tasks: Sequence[Callable[[], None]]) -> None:
        """Call every task, in no particular order, and return when all are done."""
        remaining = iter(tasks)  # next() on a list iterator is atomic

        def work() -> None:
            for task in remaining:
                task()

        others = min(self.number, len(tasks)) - 1
        futures = [self._others.submit(work) for _ in range(others)] if self._others else []
        work()
        for future in futures:
            future.result()


_cached_threads = functools.cache(Threads)


def parallel_for(loop: Callable[[int, int], None], size: int, least: int, threads: int) -> None:
    """Parallel for: call ``loop(start, stop)`` over parts of ``range(size)``, each at least ``least`` long.

    It may be called from any thread; torch's backward pass runs in its own.
    """
    number = max(1, min(threads, size // least))
    bounds = [size * part // number for part in range(number + 1)]
    if number == 1:
        loop(0, size)
    else:
        _cached_threads(number).run([functools.partial(loop, *bounds[part : part + 2]) for part in range(number)])
