"""Items that a thread computes ahead of their use."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
_END = object()


class Prefetched(Iterator[Item]):
    """``items``, up to ``ahead`` of them computed in advance by a thread; its errors are raised here.

    No generator: one that is never closed would wait for its thread wherever it is garbage-collected, also where that
    thread cannot go on.
    """

    def __init__(self, items: Iterator[Item], ahead: int) -> None:
        self._items, self._ahead = items, ahead
        self._thread = ThreadPoolExecutor(1, "loader")
        self._futures: deque[Future[Any]] = deque()

    def __next__(self) -> Item:
        while len(self._futures) <= self._ahead:
            self._futures.append(self._thread.submit(next, self._items, _END))
        item = self._futures.popleft().result()
        if item is _END:
            raise StopIteration
        return item

    def close(self) -> None:
        """Compute no more; wait for the item that the thread is at."""
        self._thread.shutdown(cancel_futures=True)
