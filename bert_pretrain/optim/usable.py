"""What the native kernels check before they run: that their compiler works, and that no memory is given twice."""

import functools
import warnings
from importlib import import_module

import numpy as np

from bert_pretrain.errors import ConfigError, with_type


@functools.cache
def import_error(module: str) -> str:
    """Why ``module`` cannot be imported, in one line; empty if it can. Imports it."""
    try:
        import_module(module)
    except Exception as error:  # numba and triton fail in many ways where versions do not fit
        return with_type(error)
    return ""


def require_import(module: str, package: str) -> None:
    """Raise ``ConfigError`` if a kernel's module cannot be imported although its package is installed."""
    if problem := import_error(module):
        raise ConfigError(
            f"kernel is 'fused' and {package} is installed but cannot be used ({problem}); "
            f"allowed: foreach or auto, or reinstall {package}"
        )


@functools.cache
def warn_of_fallback(package: str, problem: str) -> None:
    """Say once that ``kernel=auto`` does without the package."""
    warnings.warn(f"{package} is installed but cannot be used ({problem}): kernel=auto is foreach", stacklevel=2)


def check_addresses(addresses: np.ndarray) -> None:
    """Raise ``ConfigError`` if two of the tensors to write, weights or moments, are one: int64, any shape."""
    if np.unique(addresses).size < addresses.size:
        raise ConfigError(
            "two entries of the optimizer's state are one tensor, or one is a parameter; "
            "allowed: each with memory of its own"
        )
