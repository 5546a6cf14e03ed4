"""Options ``optimizer.*`` and ``schedule.*``."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from bert_pretrain.errors import ConfigError, require

PRE_NORMALIZATIONS = ("unit", "clip", "none")
TRUST_RATIOS = ("all", "decayed")
KERNELS = ("auto", "reference", "foreach", "fused", "apex")
REQUIRED = {
    "nvlamb": ("betas", "eps", "pre_normalization", "trust_ratio", "bias_correction", "kernel"),
    "lars": ("momentum", "eps", "trust_coefficient", "clip", "trust_ratio"),
    "adamw": ("betas", "eps"),
    "adam": ("betas", "eps"),
    "sgd": ("momentum",),
}
"""The options that an algorithm needs beside lr and weight_decay."""


OPTIONAL = {
    "nvlamb": ("max_grad_norm", "phi_min", "phi_max"),
    "lars": (),
    "adamw": ("max_grad_norm",),
    "adam": ("max_grad_norm",),
    "sgd": ("max_grad_norm",),
}
"""Those that it may have; all others are null."""


CHOICES = {
    "algorithm": tuple(REQUIRED),
    "pre_normalization": PRE_NORMALIZATIONS,
    "trust_ratio": TRUST_RATIOS,
    "kernel": KERNELS,
}


@dataclass
class OptimizerConfig:
    """An optimizer by name and its options. The presets in ``configs/optimizer`` hold the values."""

    algorithm: str
    """``nvlamb`` (all forms of LAMB) | ``lars`` (LARC too) | ``adamw`` | ``adam`` | ``sgd``."""
    lr: float
    """Peak learning rate; the schedule scales it."""
    weight_decay: float
    """Decay of weight matrices and embeddings; biases and normalisation layers have 0."""
    betas: list[float] | None = None
    """nvlamb, adamw, adam: decay of the first and second moment, two numbers in [0, 1)."""
    eps: float | None = None
    """All but sgd: added to the root of the second moment (lars: to the denominator of the rate), above 0."""
    momentum: float | None = None
    """lars, sgd: what the buffer keeps of itself in a step, in [0, 1)."""
    max_grad_norm: float | None = None
    """nvlamb: needed with ``pre_normalization=clip`` and unused otherwise. adamw, adam, sgd: norm to clip to; null: no
    clip."""
    pre_normalization: str | None = None
    """nvlamb only: ``unit`` | ``clip`` | ``none``: what the gradient is divided by before anything else."""
    trust_ratio: str | None = None
    """nvlamb, lars: ``all`` | ``decayed``: the layers whose update is scaled to the length of their weights."""
    bias_correction: bool | None = None
    """nvlamb only: whether moments are corrected for their start at 0."""
    phi_min: float | None = None
    """nvlamb only, optional: lower bound of the weight norm in the trust ratio."""
    phi_max: float | None = None
    """nvlamb only, optional: upper bound of the weight norm in the trust ratio."""
    kernel: str | None = None
    """nvlamb only: ``auto`` | ``reference`` | ``foreach`` | ``fused`` | ``apex``."""
    trust_coefficient: float | None = None
    """lars only: eta, the length of a layer's update relative to its weights, above 0."""
    clip: bool | None = None
    """lars only: true is LARC, which takes the smaller of the layer's rate and ``lr``."""
    sharded: bool = False
    """Divide state and work over the ranks, whole layers each (ZeRO 1). Of no effect on one rank."""

    def __post_init__(self) -> None:
        for option, allowed in CHOICES.items():
            found = getattr(self, option)
            require(found is None or found in allowed, f"optimizer.{option}", found, " | ".join(allowed))
        for option in (name for names in (*REQUIRED.values(), *OPTIONAL.values()) for name in names):
            found, needed = getattr(self, option), REQUIRED[self.algorithm]
            if option in needed and found is None:
                raise ConfigError(f"optimizer.{option} is not set; optimizer.algorithm={self.algorithm} needs it")
            taken = option in needed or option in OPTIONAL[self.algorithm] or found is None
            require(taken, f"optimizer.{option}", found, f"null with algorithm={self.algorithm}")
        if self.pre_normalization == "clip" and self.max_grad_norm is None:
            raise ConfigError("optimizer.max_grad_norm is not set; optimizer.pre_normalization=clip needs it")
        self._check_ranges()

    def _check_ranges(self) -> None:
        require(0 < self.lr < math.inf, "optimizer.lr", self.lr, "a number above 0")
        require(0 <= self.weight_decay < math.inf, "optimizer.weight_decay", self.weight_decay, "0 or more")
        two = self.betas is None or (len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas))
        require(two, "optimizer.betas", self.betas, "two numbers in [0, 1)")
        kept = self.momentum
        require(kept is None or 0 <= kept < 1, "optimizer.momentum", kept, "a number in [0, 1)")
        for option in ("eps", "trust_coefficient", "max_grad_norm"):
            found = getattr(self, option)
            require(found is None or 0 < found < math.inf, f"optimizer.{option}", found, "a number above 0")

    def options(self) -> dict[str, Any]:
        """What the optimizer's class takes beside the parameters: the options of the algorithm that are set."""
        names = ("lr", "weight_decay", *REQUIRED[self.algorithm], *OPTIONAL[self.algorithm])
        given = asdict(self)
        return {name: given[name] for name in names if given[name] is not None}


DECAY_FROM = ("warmup_end", "start")


@dataclass
class ScheduleConfig:
    """The shape of the schedule; the peak rate is the optimizer's ``lr``."""

    total_steps: int
    """T, updates in the whole run, at least 1."""
    warmup_proportion: float
    """w, the share of ``total_steps`` that is warm-up, in [0, 1]."""
    degree: float
    """d, exponent of the decay, at least 0: 0.5 is the article's root, 1 is linear, 0 is constant."""
    decay_from: str
    """``warmup_end``: continuous, above 0 in the last update. ``start``: the published code, with its drop."""

    def __post_init__(self) -> None:
        require(self.total_steps >= 1, "schedule.total_steps", self.total_steps, "at least 1")
        require(0 <= self.warmup_proportion <= 1, "schedule.warmup_proportion", self.warmup_proportion, "0 to 1")
        require(0 <= self.degree < math.inf, "schedule.degree", self.degree, "a finite number, at least 0")
        require(self.decay_from in DECAY_FROM, "schedule.decay_from", self.decay_from, " | ".join(DECAY_FROM))

    @property
    def warmup_steps(self) -> int:
        """W = round(w T)."""
        return round(self.warmup_proportion * self.total_steps)
