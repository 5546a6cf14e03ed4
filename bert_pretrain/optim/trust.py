"""The trust ratio of LAMB, and the table of ratios and norms of one update."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class TrustRatio:
    """Equation (6) and its options: the layers that have a trust ratio, the clamp phi of their weight norm (You et al.,
    ICLR 2020, algorithm 2), and bounds of the ratio itself (DeepSpeed's ``min_coeff`` and ``max_coeff``)."""

    layers: str
    """``all`` | ``decayed``: only the layers with weight decay."""
    phi_min: float | None
    phi_max: float | None
    ratio_min: float | None = None
    ratio_max: float | None = None
    bounded_layers: str = "all"
    """``all`` | ``no_decay``: the four bounds hold only for layers without weight decay."""

    def bounds(self, weight_decay: float) -> tuple[float, float, float, float]:
        """Lower and upper bound of ||w||, and of the ratio, for a layer with this weight decay."""
        if self.bounded_layers == "no_decay" and weight_decay != 0:
            return (0.0, math.inf, 0.0, math.inf)
        phi_max, ratio_max = (math.inf if high is None else high for high in (self.phi_max, self.ratio_max))
        return (self.phi_min or 0.0, phi_max, self.ratio_min or 0.0, ratio_max)

    def applies(self, weight_decay: float) -> bool:
        """Whether a layer with this weight decay has a trust ratio."""
        return self.layers == "all" or weight_decay != 0

    def of(self, weight_norm: Tensor, update_norm: Tensor, weight_decay: float) -> Tensor:
        """r = phi(||w||) / ||u||, within its bounds, or 1 where either norm is 0 or the layer has no trust ratio.

        Norms and result: float64, one value per layer, any shape. A NaN norm gives NaN: a ratio of 1 would hide that
        the state is broken.
        """
        if not self.applies(weight_decay):
            return torch.ones_like(weight_norm)
        phi_min, phi_max, ratio_min, ratio_max = self.bounds(weight_decay)
        either_zero = (weight_norm == 0) | (update_norm == 0)
        ratio = weight_norm.clamp(phi_min, phi_max) / update_norm
        return torch.where(either_zero, 1.0, ratio.clamp(ratio_min, ratio_max))


def layer_table(param_groups: list[dict[str, Any]], updated: Sequence[tuple[list[Tensor], Tensor]]) -> Tensor:
    """(3, layers) float64: trust ratio, ||w|| before the update, ||u||, in the order of ``param_groups``.

    ``updated``: lists of layers, each with its columns of the table, on the device. NaN for other layers (no gradient,
    or not on this rank). Does not wait for the device.
    """
    places = {param: i for i, param in enumerate(p for group in param_groups for p in group["params"])}
    device = next(iter(places)).device
    table = torch.full((3, len(places)), math.nan, dtype=torch.float64, device=device)
    if updated:
        columns = torch.tensor([places[param] for params, _ in updated for param in params])
        rows = torch.cat([rows for _, rows in updated], 1).double()
        table.index_copy_(1, columns.to(device, non_blocking=True), rows)
    return table
