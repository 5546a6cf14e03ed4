"""Numba's ``njit``, with its compiled code cached on disk."""

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def cached_njit(**options: Any) -> Callable[[Function], Function]:
    """``njit`` without the GIL, cached beside the source or in the home directory.

    If neither is writable (a read-only installation, a user without a home), Numba raises; then every process compiles.
    ``NUMBA_CACHE_DIR`` sets another directory for the cache.
    """

    def decorate(function: Function) -> Function:
        try:
            return njit(nogil=True, cache=True, **options)(function)
        except RuntimeError:  # no writable cache directory
            return njit(nogil=True, **options)(function)

    return decorate
