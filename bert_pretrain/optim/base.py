"""What all optimizers of this package have in common: checked input and state, and a measured gradient norm."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from bert_pretrain.errors import ConfigError, with_type
from bert_pretrain.optim.checks import check_eps, check_gradient, check_options, check_params, check_plain
from bert_pretrain.optim.dtensors import local_part
from bert_pretrain.optim.joined import small_first
from bert_pretrain.optim.layers import Decision, decide
from bert_pretrain.optim.norms import global_norm
from bert_pretrain.optim.state import StateFormat, check_entries, read_state

Closure = Callable[[], Any] | None
Step = TypeVar("Step", bound=Callable[..., Any])


def eager_step(step: Step) -> Step:
    """Decorate ``Optimizer.step``: without gradients, also where the caller compiles or is in inference mode.

    ``torch.compile`` breaks the graph here: the kernels take addresses. Without leaving inference mode, the state made
    in it could not be updated outside of it.
    """

    @torch._disable_dynamo  # public torch.compiler.disable would import dynamo with this module
    @functools.wraps(step)
    def run(self: Any, closure: Closure = None) -> Any:
        inference = torch.is_inference_mode_enabled()
        with torch.inference_mode(False) if inference else contextlib.nullcontext(), torch.no_grad():
            return step(self, closure)

    return cast(Step, run)


def without_hooks(step: Callable[..., Any]) -> Callable[..., Any]:
    """``step`` of a base class without the hooks that torch wraps around it: the subclass's step has called them."""
    return step.__wrapped__ if getattr(step, "hooked", False) else step  # type: ignore[attr-defined]


class MeasuredOptimizer(torch.optim.Optimizer):
    """A torch optimizer that measures ``||G||``, the norm of the gradient of the whole model, and skips bad steps.

    After each step ``grad_norm`` (0-d float64) is ``||G||``, unscaled, before clipping or pre-normalisation, and
    ``skipped`` (0-d float32) is 1.0 if ``||G||`` was not finite or ``found_inf`` was set. A skipped step leaves
    weights, state and step counts unchanged, bit for bit. Without any gradient ``||G||`` is 0.

    ``norm_params``: the parameters over whose gradients ``G`` is taken, if this instance updates only a part of the
    model. None: its own.

    Loss scaling follows torch's protocol for fused optimizers: ``grad_scale`` and ``found_inf``, if set, are 0-d
    tensors that ``torch.amp.GradScaler`` or the caller provides.

    ``stored_norm``: the norm of the gradients as they are stored, 0-d float64, if the caller has measured it.
    """

    _step_supports_amp_scaling = True
    stored_norm: Tensor | None = None
    averages_weights = False
    """Whether other weights are evaluated than those that are trained."""
    _kept: tuple[str, ...] = ()
    """Attributes of a subclass that pickle and deepcopy keep; torch's own version keeps only state and groups."""
    _only_plain_params = True
    """Whether bf16 and fp16 parameters and DTensors are refused."""
    _format: StateFormat
    kernel = "foreach"
    """What computes the update."""

    def __init__(self, params: Iterable[Any], *args: Any, **options: Any) -> None:
        self.norm_params: list[Tensor] | None = None
        self.workspace: dict[str, Any] = {}
        super().__init__(params, *args, **options)
        device = self._device()
        self.grad_norm = torch.zeros((), dtype=torch.float64, device=device)
        self.skipped = torch.zeros((), dtype=torch.float32, device=device)

    def __getstate__(self) -> dict[str, Any]:
        """What pickle and deepcopy keep."""
        keys = ("norm_params", "grad_norm", "skipped", *self._kept)
        return super().__getstate__() | {key: getattr(self, key) for key in keys} | {"workspace": {}}

    @property
    def running_kernel(self) -> str:
        """The kernel that updates these parameters: ``kernel``, or what ``auto`` is for them."""
        return self.kernel

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch. Raises ``ConfigError`` for what the checks refuse; torch checks the rest."""
        params = param_group["params"]
        if not isinstance(params, set):  # torch's own message refuses a set
            params = [params] if isinstance(params, Tensor) else list(params)
        tensors = [param[1] if isinstance(param, tuple) else param for param in params]
        check_options(self.defaults | param_group)
        check_eps(self.defaults | param_group, tensors)
        check_params(tensors, self.param_groups)
        if self._only_plain_params:
            check_plain(tensors)
        super().add_param_group(param_group | {"params": params})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this class, saved on any device, or of the same algorithm by others.

        Raises ``ConfigError`` if it is another algorithm's or does not fit the parameters; then nothing has changed.
        torch's version casts moments and masters to the type of the parameter; here they stay float32.
        """
        states: dict[Tensor, dict[str, Any]] = {}

        def check(_: Any, final: dict[str, Any]) -> dict[str, Any] | None:
            """After the caller's own hooks, which may have changed the state, and before torch takes the groups."""
            try:
                if "param_groups" in final and not self._fits_groups(final["param_groups"]):
                    return None  # torch's own message
                check_entries(final)
                found, groups = self._read(final)
            except (AttributeError, KeyError, RuntimeError, TypeError) as error:
                raise ConfigError(f"the state is none of {type(self).__name__} ({with_type(error)})") from error
            states.update(found)
            return {**final, "state": {}, "param_groups": groups}

        def put(_: Any) -> None:
            self.state.update(states)
            self._forget()

        with (
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(put, prepend=True),
        ):
            super().load_state_dict(state_dict)

    def exchange_loaded(self) -> None:
        """Call after ``load_state_dict`` has returned on every rank; collective if the optimizer is sharded."""

    def _read(self, saved: dict[str, Any]) -> tuple[dict[Tensor, dict[str, Any]], list[dict[str, Any]]]:
        """The states and groups of ``saved`` in the format of this class; changes nothing."""
        return read_state(saved, self.param_groups, self._format, type(self).__name__)

    def _fits_groups(self, saved: list[dict[str, Any]]) -> bool:
        return [len(group["params"]) for group in saved] == [len(group["params"]) for group in self.param_groups]

    @contextlib.contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """Inside, the parameters are what is evaluated and saved: the trained ones, unless ``averages_weights``."""
        yield

    def _forget(self) -> None:
        """Called when a state was loaded."""

    def _parts(self) -> Iterator[tuple[dict[str, Any], list[Tensor]]]:
        """Each group with its parameters that have a gradient, those of one type at a time, small ones in front."""
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None and param.numel()]
            for dtype in dict.fromkeys(param.dtype for param in params):
                yield group, small_first([param for param in params if param.dtype == dtype])

    def _params(self) -> list[Tensor]:
        """All parameters, in the order of the groups."""
        return [param for group in self.param_groups for param in group["params"]]

    def _device(self) -> torch.device:
        return next((param.device for param in self._params()), torch.device("cpu"))

    def _check_step(self) -> None:
        """Check options, gradients and states, which the caller may have changed since the last step.

        States that only differ in type, device or layout, as after moving the model, are converted.
        """
        for group in self.param_groups:
            check_options(group)
            for position, param in enumerate(group["params"]):
                if param.grad is None:
                    continue
                check_gradient(param, position)
                own = self.state.get(param)
                if own and not self._format.fits(own, param):
                    self.state[param] = self._format.conform(own, param, f"parameter {position}", extras=True)

    def _norm_grads(self) -> list[Tensor]:
        """The gradients that make up ``G``. Raises ``ConfigError`` for a sparse one."""
        params = self._params() if self.norm_params is None else self.norm_params
        for position, param in enumerate(self.norm_params or ()):  # its own are checked already
            check_gradient(param, position)
        return [local_part(param.grad) for param in params if param.grad is not None and param.numel()]

    def _decide(self, pre_normalization: str, max_grad_norm: float) -> Decision:
        """Measure ``||G||``, set ``grad_norm`` and ``skipped``, and return the decision."""
        norm = global_norm(self._norm_grads()).to(self._device()) if self.stored_norm is None else self.stored_norm
        scale = getattr(self, "grad_scale", None)
        found_inf = getattr(self, "found_inf", None)
        decision = decide(norm, pre_normalization, max_grad_norm, scale, found_inf)
        self.grad_norm = decision.grad_norm
        self.skipped = decision.skipped.to(torch.float32)
        return decision


def loss_of(closure: Closure) -> Any:
    """Call the closure of ``Optimizer.step`` with gradients enabled."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
