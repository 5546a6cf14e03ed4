"""NVLAMB: LAMB with a pre-normalised gradient, for batches of up to 64K sequences.

Provenance: LAMB is You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes"
(arXiv 1904.00962, ICLR 2020). NVLAMB is NVIDIA's variant of it, as defined in their article "Pretraining BERT with
Layer-wise Adaptive Learning Rates" (2019). Written from those equations.

One update of a layer (one parameter tensor) with weights w and gradient g, at its t-th applied update:

    (1)  g   the gradient of the mean loss over the global batch, unscaled
    (2)  g <- g / ||G||                        G: the gradient of the whole model, all groups together
    (3)  m <- b1 m + (1 - b1) g                v <- b2 v + (1 - b2) g*g
    (4)  m' = m / (1 - b1^t)                   v' = v / (1 - b2^t)
    (5)  u = m' / (sqrt(v') + eps) + decay w
    (6)  r = ||w|| / ||u||                     1 if either norm is 0; every layer, those without decay too
    (7)  w <- w - lr r u

The fast kernels fold (4) into two numbers per layer, k and e; then (5) is

         u = k m / (sqrt(v) + e) + decay w     k = sqrt(1 - b2^t) / (1 - b1^t), e = eps sqrt(1 - b2^t)

Differences of the published versions, and the option that reproduces each:

- NVIDIA's PyTorch code divides in (2) only if ||G|| > 1 (``pre_normalization="clip"``) and applies (6) only to layers
  with decay (``trust_ratio="decayed"``). Its TensorFlow code also clips, and applies (6) to every layer.
- The article's figure has eps inside the root. No code does; with a unit gradient it would dominate v. Not offered.
- LAMB (ICLR, algorithm 2) has no (2) (``pre_normalization="none"``) and applies a function phi to ||w||: here a clamp
  to ``phi_min``, ``phi_max``. Its appendix, and arXiv version 3, omit (4) (``bias_correction=False``).
- DeepSpeed clamps the ratio to [0.01, 10] (``ratio_min``, ``ratio_max``). Others leave the decay out of u. Not offered.

Moments are float32 (float64 for float64 parameters), norms as in ``norms``, step scalars in double precision. If ||G||
is 0, (2) divides by 1. With a gradient of zeros the moments of a layer decay; a layer whose gradient is None is left
out. Weights and moments that are not finite are not hidden: they propagate and set ``nonfinite_state``.
"""

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

import bert_pretrain.optim.nvlamb_cpu as nvlamb_cpu
import bert_pretrain.optim.nvlamb_triton as nvlamb_triton
from bert_pretrain.errors import ConfigError, require
from bert_pretrain.optim.base import MeasuredOptimizer, eager_step, loss_of
from bert_pretrain.optim.dtensors import shards_of
from bert_pretrain.optim.layers import NVLAMB_STATE, Outcome, Rules, Work, gather
from bert_pretrain.optim.masters import Masters, copy_masters
from bert_pretrain.optim.norms import layer_norms
from bert_pretrain.optim.nvlamb_apex import apex_step, check_apex
from bert_pretrain.optim.nvlamb_foreach import foreach_step
from bert_pretrain.optim.ranges import check_ranges
from bert_pretrain.optim.state import state_dtype
from bert_pretrain.optim.trust import TrustRatio, layer_table


def reference_step(work: Work) -> Outcome:
    """Update layer by layer, by the equations as written above. Waits for the device at every layer."""
    decision = work.decide()
    if bool(decision.skipped):
        return Outcome.of_skipped(work, decision)
    norms = []
    nonfinite = torch.zeros_like(decision.skipped)
    for layers in work.parts:
        lr = float(layers.group["lr"])
        eps = layers.group["eps"]
        decay = layers.group["weight_decay"]
        beta1, beta2 = layers.group["betas"]
        columns = (layers.owners, layers.weights, layers.grads, layers.exp_avgs, layers.exp_avg_sqs, layers.steps)
        for owner, w, grad, m, v, step in zip(*columns, strict=True):
            step += 1
            t = step.item()
            g = grad.to(w.dtype) * decision.grad_factor.item()  # (1), (2)
            m.mul_(beta1).add_(g, alpha=1 - beta1)  # (3)
            v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
            m_hat = m / (1 - beta1**t) if work.rules.bias_correction else m  # (4)
            v_hat = v / (1 - beta2**t) if work.rules.bias_correction else v
            u = m_hat / (v_hat.sqrt() + eps) + decay * w  # (5)
            w_norm, u_norm = work.whole_norms(layer_norms([w, u]).view(2, 1), [owner]).view(2)
            r = work.rules.trust_ratio.of(w_norm, u_norm, decay)  # (6)
            w.sub_(u * (lr * r.item()))  # (7)
            norms.append(torch.stack([w_norm, u_norm]))
            nonfinite |= ~(torch.isfinite(w_norm) & torch.isfinite(u_norm) & torch.isfinite(v).all())
        copy_masters(layers)
    weight_norms, update_norms = torch.stack(norms, 1)
    return Outcome(decision, nonfinite, weight_norms, update_norms)


def fused_step(work: Work) -> Outcome:
    """Update with the project's own kernel for the device."""
    if work.device.type not in FUSED:
        raise ConfigError(f"kernel is 'fused' on {work.device.type}; allowed: a CPU or CUDA, or kernel=foreach")
    outcome: Outcome = FUSED[work.device.type][0].fused_step(work)
    return outcome


FUSED: dict[str, tuple[Any, str]] = {"cpu": (nvlamb_cpu, "numba"), "cuda": (nvlamb_triton, "triton")}
"""By device: the module of the project's own kernel, and the package that compiles it."""
KERNELS: dict[str, Callable[[Work], Outcome]] = {
    "reference": reference_step,
    "foreach": foreach_step,
    "fused": fused_step,
    "apex": apex_step,
}
FOR_DTENSORS = ("reference", "foreach")
"""The kernels that complete norms over ranks."""


class NVLamb(MeasuredOptimizer):
    """NVLAMB and, by its options, the other published forms of LAMB; an ordinary ``torch.optim.Optimizer``.

    Args:
        params: parameters, named parameters or groups, as for every torch optimizer. A group may set its own
            ``lr``, ``betas``, ``eps`` and ``weight_decay``; ``||G||`` is taken over all groups.
        lr: learning rate, a float or a 0-d tensor (also as ``group["lr"]``: then no step waits for the device).
        weight_decay: ``decay`` in (5). Give biases and LayerNorm a group with 0.
        phi_min: lower bound of ||w|| in (6); ``None``: no bound. A layer of zeros still has r = 1.
        phi_max: upper bound of ||w||.
        ratio_min: lower bound of r in (6).
        ratio_max: upper bound of r.
        bounded_layers: ``all`` | ``no_decay``: the layers that these four hold for.
        kernel: all compute the same update from the same state, so a state can be loaded with any of them. DTensors
            (FSDP2): ``reference`` and ``foreach``.

    The other options are those of ``options.OptimizerConfig``.

    State of a parameter: ``step`` (0-d float32, applied updates), ``exp_avg``, ``exp_avg_sq`` and, for bf16 and fp16,
    ``master``: float32 weights, copied from the parameter at its first update. From then on the master is updated and
    the parameter is its rounded copy.

    After each step: ``grad_norm`` and ``skipped`` as in ``MeasuredOptimizer``, and ``nonfinite_state`` (0-d bool: True
    once a weight or moment was not finite, until a state is loaded). Gradients are never written.

    Raises ``ConfigError`` (a ``ValueError``) for options out of range, for parameters that share memory or are on
    several devices, and for sparse gradients.
    """

    _kept = ("rules", "kernel", "nonfinite_state")
    _only_plain_params = False
    _format = NVLAMB_STATE

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        pre_normalization: str = "unit",
        max_grad_norm: float = 1.0,
        trust_ratio: str = "all",
        bias_correction: bool = True,
        phi_min: float | None = None,
        phi_max: float | None = None,
        ratio_min: float | None = None,
        ratio_max: float | None = None,
        bounded_layers: str = "all",
        kernel: str = "auto",
    ) -> None:
        bounds = {"phi_min": phi_min, "phi_max": phi_max, "ratio_min": ratio_min, "ratio_max": ratio_max}
        chosen = {"trust_ratio": trust_ratio, "bounded_layers": bounded_layers, "kernel": kernel}
        check_ranges(pre_normalization=pre_normalization, max_grad_norm=max_grad_norm, **bounds, **chosen)
        ratio = TrustRatio(trust_ratio, **bounds, bounded_layers=bounded_layers)
        self.rules = Rules(pre_normalization, max_grad_norm, ratio, bias_correction)
        self.kernel = kernel
        self._masters = Masters()
        self._updated: list[tuple[list[Tensor], float]] = []
        self._outcome: Outcome | None = None
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay})
        if kernel == "apex":
            check_apex(self.rules, self._params())
        self.nonfinite_state = torch.zeros((), dtype=torch.bool, device=self._device())

    def __getstate__(self) -> dict[str, Any]:
        """What pickle and deepcopy keep."""
        return super().__getstate__() | {"_masters": Masters(), "_updated": [], "_outcome": None}

    @property
    def running_kernel(self) -> str:
        """As in ``MeasuredOptimizer``. ``auto`` is the fused kernel where it supports the device and all layers."""
        if self.kernel != "auto":
            return self.kernel
        return "foreach" if self.why_not_fused() else "fused"

    def why_not_fused(self) -> str:
        """Why ``kernel=auto`` is not the fused kernel for these parameters; empty if it is."""
        params, device = self._params(), self._device()
        if device.type not in FUSED:
            return f"there is none of our own for {device.type}"
        module, package = FUSED[device.type]
        if any(isinstance(param, DTensor) for param in params):
            return "weights are sharded"
        # A low-precision parameter stands for its master, which is contiguous float32.
        weights = [p if state_dtype(p) == p.dtype else torch.empty(0, device=device) for p in params if p.numel()]
        if not all(map(module.supported, weights)):
            missing = find_spec(package) is None
            return f"{package} is not installed" if missing else "a layer is float64 or not contiguous"
        return "" if module.works(device) else f"{package} cannot be used"

    @eager_step
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Apply one update, or skip it; returns what ``closure`` returns. ``foreach`` never waits for the device."""
        loss = loss_of(closure)
        self._check_step()
        parts = [layers for group in self.param_groups for layers in gather(group, self.state)]
        self._updated = [(layers.owners, layers.group["weight_decay"]) for layers in parts]
        if not parts:  # other ranks may have layers with gradients, of which ||G|| is then the norm
            self._outcome = None
            self._decide(self.rules.pre_normalization, self.rules.max_grad_norm)
            return loss
        kernel = self.running_kernel
        shards = shards_of([param for layers in parts for param in layers.owners])
        if shards is not None:
            require(kernel in FOR_DTENSORS, "kernel", kernel, f"auto, {', '.join(FOR_DTENSORS)} for DTensors")
        work = Work(
            parts=parts,
            device=self._device(),
            rules=self.rules,
            grad_scale=getattr(self, "grad_scale", None),  # set by GradScaler for this call, as found_inf is
            found_inf=getattr(self, "found_inf", None),
            workspace=self.workspace,
            norm_grads=self._norm_grads() if shards is None else [grad for layers in parts for grad in layers.grads],
            shards=shards,
            shared_norm=self.norm_params is not None,
        )
        self._masters.follow(parts)
        outcome = KERNELS[kernel](work)
        self._masters.note(parts)
        if shards is not None:
            outcome.nonfinite = shards.any(outcome.nonfinite)
        self._outcome = outcome
        self.grad_norm = outcome.decision.grad_norm
        self.skipped = outcome.decision.skipped.to(torch.float32)
        self.nonfinite_state = self.nonfinite_state.to(outcome.nonfinite.device) | outcome.nonfinite
        return loss

    @torch.no_grad()
    def layer_report(self) -> Tensor:
        """Trust ratio, ||w|| before the update and ||u|| of each layer in the last step: (3, layers) float64.

        In the order of the groups; NaN for layers that were not updated, meaningless after a skipped step. Does not
        wait for the device. Computed here, so that steps whose report is not read cost nothing.
        """
        updated = []
        if self._outcome is not None:
            sizes = [len(params) for params, _ in self._updated]
            norms = (self._outcome.weight_norms.split(sizes), self._outcome.update_norms.split(sizes))
            for (params, decay), weight_norms, update_norms in zip(self._updated, *norms, strict=True):
                ratios = self.rules.trust_ratio.of(weight_norms, update_norms, decay)
                updated.append((params, torch.stack([ratios, weight_norms, update_norms])))
        return layer_table(self.param_groups, updated)

    def _forget(self) -> None:
        self._masters.loaded(self._params())
        self.nonfinite_state = torch.zeros_like(self.nonfinite_state)  # it described the state before
