"""The trust ratio of LAMB: which layers have one, and what it is."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bert_pretrain.errors import require


@dataclass(frozen=True)
class Adaptation:
    """How the length of a layer's update follows the length of its weights (You et al., ICLR 2020, algorithm 2)."""

    layers: str
    """``all`` | ``decayed``: the layers with weight decay only."""
    phi_min: float | None
    """Lower bound of ||w||, or None."""
    phi_max: float | None
    """Upper bound of ||w||, or None."""

    def __post_init__(self) -> None:
        low, high = self.phi_min, self.phi_max
        require(low is None or 0 <= low < math.inf, "phi_min", low, "a finite number, at least 0, or null")
        require(high is None or 0 < high < math.inf, "phi_max", high, "a finite number above 0, or null")
        require(low is None or high is None or low <= high, "phi_min", low, f"at most phi_max ({high})")

    def ratio(self, weight_norm: Tensor, update_norm: Tensor, weight_decay: float) -> Tensor:
        """Return phi(||w||) / ||u||, or 1 where either norm is 0 or the layer is not adapted.

        Norms and result: float64, one value a layer, any shape. A NaN norm gives NaN: a comparison that turned it
        into 1 would hide that the state is broken.
        """
        if self.layers == "decayed" and weight_decay == 0:
            return torch.ones_like(weight_norm)
        phi = weight_norm
        if self.phi_min is not None or self.phi_max is not None:
            phi = torch.clamp(weight_norm, self.phi_min, self.phi_max)
        either_zero = (weight_norm == 0) | (update_norm == 0)
        return torch.where(either_zero, 1.0, phi / update_norm)
