"""What the options of the optimizers may be: for ``optimizer.*``, for the classes, and for groups at every step."""

import math
from collections.abc import Callable
from typing import Any

from bert_pretrain.errors import ConfigError, require, require_choice

KERNELS = ("auto", "reference", "foreach", "fused", "apex")
TWO_KERNELS = ("reference", "foreach")
"""Those of the optimizers in ``layerwise``."""
CHOICES = {
    "pre_normalization": ("unit", "clip", "none"),
    "trust_ratio": ("all", "decayed"),
    "bounded_layers": ("all", "no_decay"),
    "kernel": KERNELS,
    "update_scale": ("match_rms_adamw", "original", "hyperball"),
}

Range = tuple[Callable[[Any], bool], str]
_NOT_NEGATIVE: Range = (lambda number: 0 <= number < math.inf, "a finite number, at least 0")
_POSITIVE: Range = (lambda number: 0 < number < math.inf, "a finite number above 0")
_RANGES: dict[str, Range] = {
    "betas": (lambda betas: len(betas) == 2 and all(0 <= beta < 1 for beta in betas), "two numbers in [0, 1)"),
    "momentum": (lambda number: 0 <= number < 1, "a number in [0, 1)"),
    **dict.fromkeys(("weight_decay", "phi_min", "ratio_min"), _NOT_NEGATIVE),
    **dict.fromkeys(("eps", "max_grad_norm", "trust_coefficient", "phi_max", "ratio_max"), _POSITIVE),
}


def check_ranges(prefix: str = "", /, **options: Any) -> None:
    """Raise ``ConfigError``, with ``prefix`` before the name, for a choice or a number that an option does not take.

    A number that is None is not set. Other options than those above are left alone.
    """
    for name, value in options.items():
        if name in CHOICES:
            require_choice(f"{prefix}{name}", value, CHOICES[name])
        elif name in _RANGES and value is not None:
            is_within, allowed = _RANGES[name]
            require(is_within(value), f"{prefix}{name}", value, allowed)
    for name in ("phi", "ratio"):
        low, high = options.get(f"{name}_min"), options.get(f"{name}_max")
        fits = low is None or high is None or low <= high
        require(fits, f"{prefix}{name}_min", low, f"at most {prefix}{name}_max ({high})")
    if options.get("pre_normalization") == "clip" and options.get("max_grad_norm") is None:
        raise ConfigError(f"{prefix}max_grad_norm is not set; {prefix}pre_normalization=clip needs it")
