"""Numba's ``njit``, with its compiled code kept on disk."""

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def cached_njit(**options: Any) -> Callable[[Function], Function]:
    """``njit`` without the GIL, cached on disk beside the source or in the home directory.

    Where neither can be written (a read-only installation, a user without a home), Numba raises; then the code is
    compiled anew in each process. ``NUMBA_CACHE_DIR`` names a place that can be written.
    """

    def decorate(function: Function) -> Function:
        try:
            return njit(nogil=True, cache=True, **options)(function)
        except RuntimeError:  # no place for the cache
            return njit(nogil=True, **options)(function)

    return decorate
