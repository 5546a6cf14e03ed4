"""Optimizer state and updates sharded over the ranks by whole layers (ZeRO stage 1, Rajbhandari et al. 2020).

Based on torch's ``ZeroRedundancyOptimizer``: it assigns layers to ranks by size, runs an ordinary optimizer on those of
this rank, and broadcasts the new weights, one buffer per rank. After DDP's all-reduce every rank has the whole
gradient. Every inner optimizer computes ||G|| over all of it (``norm_params``), in the order of a single process, so
||G|| and the decision to skip are the same on all ranks without communication.

Added here: the options and results of our optimizers are passed through, and states are saved and loaded in the
ordinary format for any number of ranks (torch's version casts moments and masters to the type of the parameter and
moves step counts to the CPU).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.optim import ZeroRedundancyOptimizer

from bert_pretrain.errors import require
from bert_pretrain.optim.base import without_hooks
from bert_pretrain.optim.state import check_entries

_RESULTS = ("grad_norm", "skipped", "nonfinite_state")


class ShardedOptimizer(ZeroRedundancyOptimizer):
    """``make(groups)``, sharded over the default process group.

    Args:
        groups: parameter groups as ``decay_groups`` returns them: ``params`` are (name, parameter).
        make: makes one of the optimizers of this package from parameter groups.

    Constructor, ``step``, ``state_dict``, ``exchange_loaded`` and ``layer_report`` are collective. After a step
    ``grad_norm`` and ``skipped`` are those of the inner optimizer, the same on every rank; ``nonfinite_state`` (not for
    torch's optimizers) covers the layers of this rank. ``grad_scale`` and ``found_inf`` may be set, to the same on
    every rank. Weights become views of one buffer per rank. Raises ``ConfigError`` as the optimizer does, and if a rank
    would get no layer or the weights have several types.
    """

    _step_supports_amp_scaling = True
    # attributes of torch's class that it does not annotate
    _all_params: list[Tensor]
    _all_state_dicts: list[dict[str, Any]]
    _param_to_index: dict[Tensor, int]
    _sync_params: Callable[[], None]
    _sync_param_groups: Callable[[list[dict[str, Any]], list[dict[str, Any]]], None]

    def __init__(
        self, groups: Iterable[dict[str, Any]], make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    ) -> None:
        whole = [
            group | {"params": [p for _, p in group["params"]], "param_names": [name for name, _ in group["params"]]}
            for group in groups
        ]
        layers = sum(len(group["params"]) for group in whole)
        require(layers >= dist.get_world_size(), "ranks", dist.get_world_size(), f"up to {layers}, the layers to deal")
        dtypes = {param.dtype for group in whole for param in group["params"]}
        require(len(dtypes) == 1, "dtypes of the parameters", dtypes, "one: a rank's weights share a buffer")
        make(whole)  # only checks: a rank alone would not see that layers of different ranks do not fit together
        super().__init__(whole, make, parameters_as_bucket_view=True)  # type: ignore[arg-type]
        self.optim.norm_params = self._all_params
        self._take_results()

    def step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        """Update this rank's layers, then exchange weights; returns what ``closure`` returns."""
        for key in ("grad_scale", "found_inf"):
            setattr(self.optim, key, getattr(self, key, None))
        self.optim.norm_params = self._all_params
        loss = without_hooks(super().step.__func__)(self, closure, **kwargs)  # type: ignore[attr-defined]
        self._take_results()
        return loss

    def _take_results(self) -> None:
        for key in _RESULTS:
            if hasattr(self.optim, key):
                setattr(self, key, getattr(self.optim, key))

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """As the inner optimizer's, on every rank; collective."""
        with self.optim.evaluation_weights():
            if self.optim.averages_weights:
                self._sync_params()
            yield
        if self.optim.averages_weights:
            self._sync_params()

    def layer_report(self) -> Tensor:
        """As ``NVLamb.layer_report`` for all layers, on every rank: one all-reduce of a small table."""
        own = self.optim.layer_report()
        table = torch.zeros((3, len(self._all_params)), dtype=own.dtype, device=own.device)
        mine = [param for group in self.optim.param_groups for param in group["params"]]
        table[:, [self._param_to_index[param] for param in mine]] = own
        dist.all_reduce(table)
        return table

    def state_dict(self) -> dict[str, Any]:
        """The ordinary state of all layers on rank 0, the groups without state on the others. On the CPU."""
        self.consolidate_state_dict(to=0)
        if self.rank == 0:
            state = super().state_dict()
            self._all_state_dicts = []  # drop the copy that torch keeps
            return state
        return {"state": {}, "param_groups": torch.optim.Optimizer.state_dict(self)["param_groups"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load this rank's part of an ordinary state, saved by any number of ranks. Then call ``exchange_loaded``."""
        check_entries(state_dict)
        saved = state_dict["state"]
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        require(len(ids) == len(self._all_params), "layers of the state", len(ids), f"{len(self._all_params)}")
        groups, state, position = [], {}, 0
        for group, saved_group in zip(self.optim.param_groups, state_dict["param_groups"], strict=True):
            places = range(position, position + len(group["params"]))
            position = places.stop
            options = {key: value for key, value in saved_group.items() if key != "param_names"}
            groups.append(options | {"params": list(places), "param_names": group["param_names"]})
            for place, param in zip(places, group["params"], strict=True):
                saved_id = ids[self._param_to_index[param]]
                if saved_id in saved:
                    state[place] = saved[saved_id]
        self.optim.load_state_dict({"state": state, "param_groups": groups})  # refuses before it changes anything
        self._sync_param_groups(self.optim.param_groups, self.param_groups)

    def exchange_loaded(self) -> None:
        """After ``load_state_dict`` on every rank: the weights that loading has set from the averages. Collective."""
        if self.optim.averages_weights:
            self._sync_params()
