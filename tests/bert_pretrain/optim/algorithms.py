"""The algorithms beside NVLAMB: how each is made, its oracle, and the layers that both run on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from bert_pretrain.optim import LARS, SGD, Adam, AdamH, AdamW, Muon, ScheduleFreeAdamW
from tests.layerwise_oracles import AdamHOracle, MuonOracle, ScheduleFreeOracle
from tests.oracles import GROUPS, SHAPES, AdamOracle, MomentumOracle, build_oracle, listed, problem


@dataclass
class Algorithm:
    """``layers`` are those of the problem that it runs on."""

    make: Callable
    oracle: Callable
    groups: Sequence = tuple(GROUPS)
    layers: tuple = tuple(range(len(SHAPES)))

    def problem(self, dtype=np.float32):
        weights, gradients = problem(dtype)
        return [weights[i] for i in self.layers], lambda k: [gradients(k)[i] for i in self.layers]

    def build(self, weights, dtype=torch.float32, **options):
        params = [torch.tensor(w).to(dtype).requires_grad_() for w in weights]
        return params, self.make(listed(params, self.groups), 1.0, **options)

    def build_oracle(self, weights):
        return build_oracle(weights, self.groups, kind=self.oracle)


DECOUPLED = partial(AdamOracle, eps=1e-6, decoupled=True)
ELEMENTWISE = {
    "adamw": Algorithm(partial(AdamW, max_grad_norm=1.0), partial(DECOUPLED, max_grad_norm=1.0)),
    "adamw_unclipped": Algorithm(AdamW, DECOUPLED),
    "adam": Algorithm(partial(Adam, max_grad_norm=1.0), partial(AdamOracle, max_grad_norm=1.0)),
    "adamw_unit": Algorithm(partial(AdamW, pre_normalization="unit"), partial(DECOUPLED, max_grad_norm="unit")),
    "adam_unit": Algorithm(
        partial(Adam, eps=1e-6, max_grad_norm=1.0, pre_normalization="unit"),
        partial(AdamOracle, eps=1e-6, max_grad_norm="unit"),
    ),
    "adamw_unused_limit": Algorithm(partial(AdamW, pre_normalization="none", max_grad_norm=1.0), DECOUPLED),
    "sgd": Algorithm(SGD, MomentumOracle),
    "sgd_plain": Algorithm(
        partial(SGD, momentum=0.0, max_grad_norm=5.0), partial(MomentumOracle, momentum=0, max_grad_norm=5)
    ),
    "lars": Algorithm(partial(LARS, trust_coefficient=0.1), partial(MomentumOracle, eta=0.1, eps=1e-8)),
    "lars_decayed": Algorithm(
        partial(LARS, trust_coefficient=0.1, trust_ratio="decayed"),
        partial(MomentumOracle, eta=0.1, eps=1e-8, only_decayed=True),
    ),
    "larc": Algorithm(
        partial(LARS, trust_coefficient=0.5, clip=True), partial(MomentumOracle, eta=0.5, eps=1e-8, larc=True)
    ),
}
# On matrices alone, of which layer 6 has gradients of zero.
decayed = partial(Algorithm, groups=[(0.01, 0.01, [0, 2]), (0.02, 0.0, [1, 3])], layers=(3, 4, 6, 8))
fixed = partial(Algorithm, groups=[(0.01, 0.0, [0, 2]), (0.02, 0.0, [1, 3])], layers=(3, 4, 6, 8))
LAYERWISE = {
    "muon": decayed(partial(Muon, update_scale="match_rms_adamw"), partial(MuonOracle, scale="match_rms_adamw")),
    "muon_original": decayed(partial(Muon, update_scale="original"), partial(MuonOracle, scale="original")),
    "muonh": fixed(partial(Muon, update_scale="hyperball"), partial(MuonOracle, scale="hyperball")),
    "adamh": fixed(AdamH, AdamHOracle),
    "adamh_clipped": fixed(
        partial(AdamH, pre_normalization="clip", max_grad_norm=1.0), partial(AdamHOracle, max_grad_norm=1.0)
    ),
    "schedule_free": decayed(ScheduleFreeAdamW, ScheduleFreeOracle),
}
WITH_KERNELS = ELEMENTWISE | {
    f"{name} {kernel}": replace(algorithm, make=partial(algorithm.make, kernel=kernel))
    for name, algorithm in LAYERWISE.items()
    for kernel in ("reference", "foreach")
}
