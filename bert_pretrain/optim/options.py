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
"""The options that an algorithm needs besides lr and weight_decay."""
OPTIONAL = {
    "nvlamb": ("max_grad_norm", "phi_min", "phi_max"),
    "lars": (),
    "adamw": ("max_grad_norm",),
    "adam": ("max_grad_norm",),
    "sgd": ("max_grad_norm",),
}
"""The options that it also takes. All others must be null."""
CHOICES = {
    "algorithm": tuple(REQUIRED),
    "pre_normalization": PRE_NORMALIZATIONS,
    "trust_ratio": TRUST_RATIOS,
    "kernel": KERNELS,
}


@dataclass
class OptimizerConfig:
    """The optimizer and its options. The presets in ``configs/optimizer`` set the values."""

    algorithm: str
    """``nvlamb`` (all forms of LAMB), ``lars`` (and LARC), ``adamw``, ``adam`` or ``sgd``."""
    lr: float
    """Peak learning rate, above 0; the schedule scales it."""
    weight_decay: float
    """Decay of weight matrices and embeddings, at least 0. Biases and normalisation layers have none."""
    betas: list[float] | None = None
    """nvlamb, adamw, adam: decay rates of the first and second moment, two numbers in [0, 1). null for others."""
    eps: float | None = None
    """Added to the root of the second moment (lars: to the denominator of the layer's rate), above 0. null for sgd."""
    momentum: float | None = None
    """lars, sgd: factor of the momentum buffer, in [0, 1). null for others."""
    max_grad_norm: float | None = None
    """adamw, adam, sgd: clip the gradient of the model to this norm; null: no clipping. nvlamb: the norm of
    ``pre_normalization=clip``, otherwise unused."""
    pre_normalization: str | None = None
    """nvlamb: what to do with the gradient first: ``unit`` divides it by its norm over the whole model, ``clip`` only
    if that is above ``max_grad_norm``, ``none`` leaves it. null for others."""
    trust_ratio: str | None = None
    """nvlamb, lars: which layers have a rate of their own: ``all``, or only the ``decayed`` ones (no biases and
    normalisation layers). null for others."""
    bias_correction: bool | None = None
    """nvlamb: correct the moments for their start at 0. null for others."""
    phi_min: float | None = None
    """nvlamb: lower bound of the weight norm in the trust ratio. null: none."""
    phi_max: float | None = None
    """nvlamb: upper bound of the weight norm in the trust ratio. null: none."""
    kernel: str | None = None
    """nvlamb: the implementation. ``fused`` is Numba on CPU and Triton on CUDA, ``foreach`` torch's multi-tensor
    operations, ``apex`` NVIDIA's kernel, ``reference`` the equations layer by layer. ``auto`` is fused if possible,
    else foreach. null for others."""
    trust_coefficient: float | None = None
    """lars: eta, the norm of a layer's update relative to the norm of its weights, above 0. null for others."""
    clip: bool | None = None
    """lars: true is LARC, which limits each layer's rate to ``lr``. null for others."""
    sharded: bool = False
    """Shard optimizer state and updates over the ranks by whole layers (ZeRO 1). No effect on one rank."""

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
    """The shape of the learning rate schedule; its peak is the optimizer's ``lr``."""

    total_steps: int
    """T, the optimizer updates of the whole run, at least 1."""
    warmup_proportion: float
    """w, the share of ``total_steps`` that is linear warm-up, in [0, 1]."""
    degree: float
    """d, the exponent of the polynomial decay, at least 0: 0 is constant, 0.5 as in NVIDIA's article, 1 linear."""
    decay_from: str
    """Where the decay starts: ``warmup_end``, at the peak; or ``start``, at step 0 as in NVIDIA's published code, which
    makes the rate drop at the end of warm-up."""

    def __post_init__(self) -> None:
        require(self.total_steps >= 1, "schedule.total_steps", self.total_steps, "at least 1")
        require(0 <= self.warmup_proportion <= 1, "schedule.warmup_proportion", self.warmup_proportion, "0 to 1")
        require(0 <= self.degree < math.inf, "schedule.degree", self.degree, "a finite number, at least 0")
        require(self.decay_from in DECAY_FROM, "schedule.decay_from", self.decay_from, " | ".join(DECAY_FROM))

    @property
    def warmup_steps(self) -> int:
        """W = round(w T)."""
        return round(self.warmup_proportion * self.total_steps)
