"""The effect of bias correction on an update, against theory, in float64.

u = (m/B1) / (sqrt(v/B2) + eps) = f m / (sqrt(v) + eps') with f = sqrt(B2)/B1: without decay the correction is one
factor for the whole layer. The trust ratio divides by ||u||, so the factor cancels. In a layer without trust ratio, the
uncorrected steps are longer by 1/f: 3.16 times at t = 1, 6.57 times at t = 12, still 2 times at t = 287.
"""

import numpy as np
import pytest
import torch

from bert_pretrain.optim import NVLamb

BETA1, BETA2 = 0.9, 0.999


def weights_after(steps: int, correct: bool, trust_ratio: str, decay: float) -> list[torch.Tensor]:
    """A layer's weights after each update of a fixed series of gradients."""
    generator = torch.Generator().manual_seed(5)
    layer = torch.nn.Parameter(torch.randn(7, 3, generator=generator, dtype=torch.float64))
    optimizer = NVLamb([layer], lr=0.02, betas=(BETA1, BETA2), eps=1e-14, weight_decay=decay,
                       pre_normalization="unit", trust_ratio=trust_ratio, bias_correction=correct,
                       kernel="reference")  # fmt: skip
    seen = [layer.detach().clone()]
    for _ in range(steps):
        layer.grad = torch.randn(7, 3, generator=generator, dtype=torch.float64)
        optimizer.step()
        seen.append(layer.detach().clone())
    return seen


def test_the_correction_cancels_in_the_trust_ratio_of_a_layer_without_decay() -> None:
    for corrected, plain in zip(*(weights_after(50, on, "all", 0.0) for on in (True, False)), strict=True):
        assert torch.allclose(corrected, plain, rtol=0, atol=1e-11)


def test_with_decay_it_changes_the_weight_of_the_decay() -> None:
    """Uncorrected, the moments' part of u is longer at first and decay * w is not."""
    corrected, plain = (weights_after(12, on, "all", 0.1)[-1] for on in (True, False))
    assert not torch.allclose(corrected, plain, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("t", "factor"), [(1, 3.162), (12, 6.573), (287, 2.0)])
def test_without_trust_ratio_uncorrected_steps_are_longer_by_a_known_factor(t: int, factor: float) -> None:
    by_formula = (1 - BETA1**t) / np.sqrt(1 - BETA2**t)
    assert by_formula == pytest.approx(factor, abs=5e-3)
    corrected, plain = (weights_after(t, on, "decayed", 0.0) for on in (True, False))
    ratio = (plain[t] - plain[t - 1]).norm() / (corrected[t] - corrected[t - 1]).norm()
    assert float(ratio) == pytest.approx(by_formula, rel=1e-9)
