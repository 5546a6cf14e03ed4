"""Items that a thread computes ahead of their use."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
_END = object()


def prefetched(items: Iterator[Item], ahead: int) -> Generator[Item]:
    """``items``, up to ``ahead`` of them computed in advance by a thread; its errors are raised here."""
    thread = ThreadPoolExecutor(1, "loader")
    try:
        futures: deque[Future[Any]] = deque(thread.submit(next, items, _END) for _ in range(ahead))
        while (item := futures.popleft().result()) is not _END:
            futures.append(thread.submit(next, items, _END))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)
