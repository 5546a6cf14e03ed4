"""Python's garbage collector, run by all ranks between the same steps.

Left alone, it runs in each rank when that has made enough objects: 0.1 s and more at a time, in which all other ranks
wait in the next all-reduce. With many ranks one of them collects at almost every step.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY = 100
"""Global batches between two collections. A step leaves no cycle that holds a tensor, so that memory does not grow."""


@contextmanager
def collected_together() -> Iterator[Callable[[int], None]]:
    """Context in which garbage is collected only by what it returns: called before each global batch, by its number.

    What exists at the start is not looked at again, which makes a collection cheap.
    """
    automatic = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()

    def collect_if_due(attempt: int) -> None:
        if attempt % EVERY == 0:
            gc.collect()

    try:
        yield collect_if_due
    finally:
        gc.unfreeze()
        if automatic:
            gc.enable()
