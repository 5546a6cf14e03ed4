"""Options ``optimizer.*`` and ``schedule.*``."""

import math
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, ClassVar

from bert_pretrain.errors import ConfigError, require, require_choice
from bert_pretrain.optim.ranges import TWO_KERNELS, check_ranges

REQUIRED = {
    "nvlamb": ("betas", "eps", "pre_normalization", "trust_ratio", "bias_correction", "kernel"),
    "lars": ("momentum", "eps", "trust_coefficient", "clip", "trust_ratio"),
    "adamw": ("betas", "eps"),
    "adam": ("betas", "eps"),
    "sgd": ("momentum",),
    "muon": ("momentum", "update_scale", "pre_normalization", "kernel"),
    "adamh": ("betas", "eps", "pre_normalization", "kernel"),
    "schedule_free_adamw": ("betas", "eps", "pre_normalization", "kernel"),
}
"""The options that an algorithm needs besides lr and weight_decay."""
OPTIONAL = {
    "nvlamb": ("max_grad_norm", "phi_min", "phi_max", "ratio_min", "ratio_max", "bounded_layers"),
    "lars": (),
    "adamw": ("max_grad_norm", "pre_normalization"),
    "adam": ("max_grad_norm", "pre_normalization"),
    "sgd": ("max_grad_norm", "pre_normalization"),
    "muon": ("max_grad_norm",),
    "adamh": ("max_grad_norm",),
    "schedule_free_adamw": ("max_grad_norm",),
}
"""The options that it also takes. All others must be null."""
FOR_MATRICES = ("muon", "adamh")
"""The algorithms that update hidden matrices only."""
MOMENTS = {"lars": 1, "sgd": 1, "muon": 1, "schedule_free_adamw": 3}
"""Tensors like the parameter that an algorithm keeps, if not 2."""
_MOST_RATE = 1e6  # far beyond any use, and an update still fits into float32


@dataclass
class AlgorithmConfig:
    """An algorithm and its options."""

    _prefix: ClassVar[str] = "optimizer"

    algorithm: str
    """``nvlamb`` (all forms of LAMB), ``lars`` (and LARC), ``adamw``, ``adam``, ``sgd``, ``schedule_free_adamw``, or
    ``muon`` or ``adamh``, which update hidden matrices only."""
    weight_decay: float
    """Decay of weight matrices and embeddings, at least 0. Biases and normalisation layers have none."""
    betas: list[float] | None = None
    """All but lars, sgd and muon: decay rates of the first and second moment, two numbers in [0, 1).
    schedule_free_adamw: the first is the share of the average in the trained weights. null for others."""
    eps: float | None = None
    """Added to the root of the second moment (lars: to the denominator of the layer's rate), above 0. null for
    sgd and muon."""
    momentum: float | None = None
    """lars, sgd, muon: factor of the momentum buffer, in [0, 1). null for others."""
    max_grad_norm: float | None = None
    """The norm of ``pre_normalization=clip``. lars takes none."""
    pre_normalization: str | None = None
    """What to do with the gradient first: ``unit`` divides it by its norm over the whole model, ``clip`` only if that
    is above ``max_grad_norm``, ``none`` leaves it. adamw, adam, sgd: null clips if ``max_grad_norm`` is set. null for
    lars."""
    trust_ratio: str | None = None
    """nvlamb, lars: which layers have a rate of their own: ``all``, or only the ``decayed`` ones (no biases and
    normalisation layers). null for others."""
    bias_correction: bool | None = None
    """nvlamb: correct the moments for their start at 0. null for others."""
    phi_min: float | None = None
    """nvlamb: lower bound of the weight norm in the trust ratio. null: none."""
    phi_max: float | None = None
    """nvlamb: upper bound of the weight norm in the trust ratio. null: none."""
    ratio_min: float | None = None
    """nvlamb: lower bound of the trust ratio. null: none."""
    ratio_max: float | None = None
    """nvlamb: upper bound of the trust ratio. null: none."""
    bounded_layers: str | None = None
    """nvlamb: the layers that these four bounds hold for: ``all``, or ``no_decay``, biases and normalisation layers
    only. null: all."""
    kernel: str | None = None
    """nvlamb, muon, adamh, schedule_free_adamw: the implementation. ``reference`` is the equations layer by layer,
    ``foreach`` torch's multi-tensor operations. nvlamb also: ``fused`` is Numba on CPU and Triton on CUDA, ``apex``
    NVIDIA's kernel, ``auto`` is fused if possible, else foreach. null for others."""
    trust_coefficient: float | None = None
    """lars: eta, the norm of a layer's update relative to the norm of its weights, above 0. null for others."""
    clip: bool | None = None
    """lars: true is LARC, which limits each layer's rate to ``lr``. null for others."""
    update_scale: str | None = None
    """muon: the factor of a matrix's update: ``match_rms_adamw`` makes its elements as large as AdamW's, so that it
    takes AdamW's rates (Moonshot), ``original`` depends on the shape (Jordan), ``hyperball`` keeps the norm of the
    matrix and moves it by ``lr`` of that. null for others."""

    def __post_init__(self) -> None:
        name, algorithm = self._prefix, self.algorithm
        require_choice(f"{name}.algorithm", algorithm, REQUIRED)
        needed = REQUIRED[algorithm]
        taken = REQUIRED[algorithm] + OPTIONAL[algorithm]
        for option in dict.fromkeys(chain(*REQUIRED.values(), *OPTIONAL.values())):
            found = getattr(self, option)
            if option in needed and found is None:
                raise ConfigError(f"{name}.{option} is not set; {name}.algorithm={algorithm} needs it")
            fits = option in taken or found is None
            require(fits, f"{name}.{option}", found, f"null with algorithm={algorithm}")
        if self.kernel is not None and algorithm != "nvlamb":
            require_choice(f"{name}.kernel", self.kernel, TWO_KERNELS)
        check_ranges(f"{name}.", **self.options())
        decay = self.weight_decay
        fixed = algorithm == "adamh" or self.update_scale == "hyperball"
        require(not (fixed and decay), f"{name}.weight_decay", decay, "0: the norm of a matrix is fixed")

    def options(self) -> dict[str, Any]:
        """What the optimizer's class takes beside the parameters: the options of the algorithm that are set."""
        names = ("weight_decay", *REQUIRED[self.algorithm], *OPTIONAL[self.algorithm])
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def moments(self) -> int:
        """Tensors like the parameter that the optimizer keeps for each."""
        return MOMENTS.get(self.algorithm, 2)


@dataclass
class OthersConfig(AlgorithmConfig):
    """The optimizer of the layers that are no hidden matrices."""

    _prefix: ClassVar[str] = "optimizer.others"

    lr_ratio: float = 1.0
    """Its learning rate as a multiple of ``optimizer.lr``, above 0."""

    def __post_init__(self) -> None:
        allowed = [name for name in REQUIRED if name not in FOR_MATRICES]
        require_choice(f"{self._prefix}.algorithm", self.algorithm, allowed)
        super().__post_init__()
        ratio = self.lr_ratio
        require(0 < ratio <= _MOST_RATE, f"{self._prefix}.lr_ratio", ratio, f"above 0, up to {_MOST_RATE:g}")


@dataclass
class OptimizerConfig(AlgorithmConfig):
    """The optimizer and its options. The presets in ``configs/optimizer`` set the values."""

    lr: float = field(kw_only=True)
    """Peak learning rate, above 0; the schedule scales it."""
    others: OthersConfig | None = None
    """Another optimizer for all layers but hidden matrices: embeddings, biases, normalisation layers and output layers.
    null: one for all."""
    sharded: bool = False
    """Shard optimizer state and updates over the ranks by whole layers (ZeRO 1). No effect on one rank."""
    freeze: list[str] = field(default_factory=list)
    """Parameters that are not trained: shell patterns over transformers' names, the last that matches wins; one that
    starts with ``!`` trains what it matches. ``[bert.embeddings.*]``; ``["*","!bert.embeddings.*"]``: all but these."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.lr <= _MOST_RATE, "optimizer.lr", self.lr, f"above 0, up to {_MOST_RATE:g}")
        if self.algorithm in FOR_MATRICES and self.others is None:
            raise ConfigError(
                f"optimizer.others is not set; optimizer.algorithm={self.algorithm} updates hidden matrices only and "
                "needs an optimizer for the others, as in optimizer=muon"
            )

    def options(self) -> dict[str, Any]:
        """As of an algorithm, with ``lr``."""
        return {"lr": self.lr, **super().options()}

    @property
    def moments(self) -> int:
        """Of the optimizer that keeps more of them."""
        return max(super().moments, 0 if self.others is None else self.others.moments)


DECAY_FROM = ("warmup_end", "start")
MOST_STEPS = 1 << 24
"""Optimizers count updates in float32, which holds these numbers exactly."""
SHAPES = ("polynomial", "wsd", "cosine", "constant")
DECAY_FORMS = ("linear", "1-sqrt")
OF_SHAPES: tuple[tuple[str, Any, tuple[str, ...]], ...] = (
    ("decay_steps", None, ("wsd",)),
    ("decay_proportion", None, ("wsd",)),
    ("decay_form", "linear", ("wsd",)),
    ("final_share", 0.0, ("wsd", "cosine")),
)
"""Options of the schedule with their defaults, and the shapes that they are for."""


@dataclass
class ScheduleConfig:
    """The shape of the learning rate schedule; its peak is the optimizer's ``lr``."""

    total_steps: int
    """T, the optimizer updates of the whole run, at least 1."""
    warmup_proportion: float | None = None
    """w, the share of ``total_steps`` that is linear warm-up, in [0, 1]. Unused if ``warmup_steps`` is set."""
    degree: float | None = None
    """polynomial: d, the exponent of the decay, at least 0: 0 is constant, 0.5 as in NVIDIA's article, 1 linear."""
    decay_from: str | None = None
    """polynomial: where the decay starts: ``warmup_end``, at the peak; or ``start``, at step 0 as in NVIDIA's published
    code, which makes the rate drop at the end of warm-up."""
    shape: str = "polynomial"
    """What follows the warm-up: ``polynomial`` decay; ``wsd``, stable at the peak and then a decay over the last steps;
    ``cosine`` decay; or ``constant``."""
    warmup_steps: int | None = None
    """W, the steps of linear warm-up: does not move with ``total_steps``. null: ``warmup_proportion`` of them."""
    decay_steps: int | None = None
    """wsd: D, the last steps of the run, over which the rate decays. null: ``decay_proportion`` of ``total_steps``."""
    decay_proportion: float | None = None
    """wsd: the share of ``total_steps`` over which the rate decays, in [0, 1]. Unused if ``decay_steps`` is set."""
    decay_form: str = "linear"
    """wsd: ``linear``, or ``1-sqrt``: steeper at first, flatter at the end."""
    final_share: float = 0.0
    """wsd, cosine: the share of the peak to which the rate decays, in [0, 1]."""

    def __post_init__(self) -> None:
        total = self.total_steps
        require(1 <= total <= MOST_STEPS, "schedule.total_steps", total, f"1 to {MOST_STEPS:,}")
        require_choice("schedule.shape", self.shape, SHAPES)
        require_choice("schedule.decay_from", self.decay_from, (*DECAY_FROM, None))
        require_choice("schedule.decay_form", self.decay_form, DECAY_FORMS)
        for option in ("warmup_proportion", "decay_proportion", "final_share"):
            share = getattr(self, option)
            require(share is None or 0 <= share <= 1, f"schedule.{option}", share, "0 to 1")
        degree = self.degree
        require(degree is None or 0 <= degree < math.inf, "schedule.degree", degree, "a finite number, at least 0")
        if self.warmup_steps is None and self.warmup_proportion is None:
            raise ConfigError("schedule.warmup_proportion is not set; give it, or schedule.warmup_steps")
        needed = ("degree", "decay_from") if self.shape == "polynomial" else ()
        for option in (option for option in needed if getattr(self, option) is None):
            raise ConfigError(f"schedule.{option} is not set; schedule.shape={self.shape} needs it")
        if self.shape == "wsd" and self.decay_steps is None and self.decay_proportion is None:
            raise ConfigError(
                "schedule.decay_steps is not set; schedule.shape=wsd needs it, or schedule.decay_proportion"
            )
        self._check_unused()
        self._check_steps()

    def _check_unused(self) -> None:
        """No option is stated that has no effect with this shape; recipes state ``degree`` and ``decay_from``."""
        for option, default, shapes in OF_SHAPES:
            value, only = getattr(self, option), "null" if default is None else default
            allowed = f"{only} with schedule.shape={self.shape}; it is for {' and '.join(shapes)}"
            require(value == default or self.shape in shapes, f"schedule.{option}", value, allowed)

    def _check_steps(self) -> None:
        """Warm-up and decay fit into the run."""
        total, warmup = self.total_steps, self.warmup
        allowed = f"0 to schedule.total_steps ({total})"
        require(0 <= warmup <= total, "schedule.warmup_steps", self.warmup_steps, allowed)
        if self.shape == "wsd":
            option = "decay_proportion" if self.decay_steps is None else "decay_steps"
            allowed = f"at least 0, and with warm-up ({warmup} steps) at most schedule.total_steps ({total})"
            require(0 <= self.decay <= total - warmup, f"schedule.{option}", getattr(self, option), allowed)

    @property
    def warmup(self) -> int:
        """W: ``warmup_steps``, or round(w T)."""
        return (
            round((self.warmup_proportion or 0) * self.total_steps) if self.warmup_steps is None else self.warmup_steps
        )

    @property
    def decay(self) -> int:
        """D of ``wsd``: ``decay_steps``, or the rounded share of T; 0 for other shapes.

        Warm-up and decay that fill the run may round to T + 1 together; then D is one less.
        """
        if self.shape != "wsd":
            return 0
        if self.decay_steps is not None:
            return self.decay_steps
        rounded = round((self.decay_proportion or 0) * self.total_steps)
        return rounded - (self.warmup + rounded == self.total_steps + 1)
