"""Two ranks of test_sharded.py: sharded optimizers against the same optimizer on one rank."""

import copy
import itertools
import shutil
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard
from torch.nn.parallel import DistributedDataParallel

from bert_pretrain.config import PretrainConfig
from bert_pretrain.distributed.preemption import StopRequest
from bert_pretrain.distributed.world import World
from bert_pretrain.errors import ConfigError
from bert_pretrain.optim import (
    LARS,
    SGD,
    Adam,
    AdamH,
    AdamW,
    Muon,
    NVLamb,
    PairedOptimizer,
    ScheduleFreeAdamW,
    ShardedOptimizer,
)
from bert_pretrain.optim.build import decay_groups, layer_groups
from bert_pretrain.options.config_loading import load_config
from bert_pretrain.run import pretrain

FAMILY = {
    "nvlamb": partial(NVLamb, lr=0.01, kernel="fused"),
    "nvlamb_foreach": partial(NVLamb, lr=0.01, kernel="foreach"),
    "nvlamb_reference": partial(NVLamb, lr=0.01, kernel="reference"),
    "nvidia_code": partial(
        NVLamb, lr=0.01, pre_normalization="clip", max_grad_norm=0.01, trust_ratio="decayed", kernel="foreach"
    ),
    "lamb": partial(NVLamb, lr=0.01, pre_normalization="none", kernel="foreach"),
    "lars": partial(LARS, lr=1.0, trust_coefficient=0.01),
    "larc": partial(LARS, lr=0.1, trust_coefficient=0.01, clip=True),
    "adamw": partial(AdamW, lr=0.01, max_grad_norm=0.01),
    "adam": partial(Adam, lr=0.01, max_grad_norm=0.01),
    "sgd": partial(SGD, lr=0.1, max_grad_norm=0.01),
    "muon": partial(PairedOptimizer, first=partial(Muon, lr=0.01), second=partial(AdamW, lr=0.01, max_grad_norm=0.01)),
    "adamh": partial(PairedOptimizer, first=partial(AdamH, lr=0.01), second=partial(NVLamb, lr=0.01)),
    "schedule_free": partial(ScheduleFreeAdamW, lr=0.01, pre_normalization="unit"),
}


def make_model() -> nn.Module:
    """Ten layers of odd sizes, 3,818 parameters."""
    torch.manual_seed(1)
    hidden = [
        nn.Linear(13, 37),
        nn.LayerNorm(37),
        nn.Tanh(),
        nn.Linear(37, 41),
        nn.Tanh(),
        nn.Linear(41, 37),
        nn.Tanh(),
    ]
    return nn.Sequential(*hidden, nn.Linear(37, 3))


def groups_of(model: nn.Module, make: partial) -> list[dict]:
    """Decay groups, those of two optimizers if ``make`` makes a pair."""
    others = SimpleNamespace(weight_decay=0.01, lr_ratio=1.0) if make.func is PairedOptimizer else None
    return layer_groups(model, SimpleNamespace(weight_decay=0.01 * (others is None), others=others))


def samples(step: int) -> torch.Tensor:
    """Eight samples; each rank takes its share."""
    return torch.randn(8, 13, generator=torch.Generator().manual_seed(step))


def backward(network: nn.Module, batch: torch.Tensor) -> None:
    network.zero_grad(set_to_none=True)
    network(batch).square().mean().backward()


def bytes_of_state(optimizer: torch.optim.Optimizer) -> int:
    return sum(t.numel() * t.element_size() for own in optimizer.state.values() for t in own.values())


def count_calls(counts: Counter, name: str) -> None:
    original = getattr(dist, name)

    def counted(*args, **kwargs):
        counts[name] += 1
        return original(*args, **kwargs)

    setattr(dist, name, counted)


def sharded(name: str, counts: Counter) -> dict:
    """Seven steps under DDP, one of them skipped; the unsharded optimizer gets the whole batch, without DDP."""
    rank, make = dist.get_rank(), FAMILY[name]
    whole_model, model = make_model(), make_model()
    whole, optimizer = make(groups_of(whole_model, make)), ShardedOptimizer(groups_of(model, make), make)
    network = DistributedDataParallel(model)
    reduced: list[int] = []

    def hook(state, bucket):
        reduced.append(bucket.buffer().numel())
        return allreduce_hook(state, bucket)

    network.register_comm_hook(None, hook)
    halves, resumed_from = slice(4 * rank, 4 * rank + 4), None
    for step in range(7):
        backward(whole_model, samples(step))
        backward(network, samples(step)[halves])
        if step == 3:  # skipped on both ranks, though only one owns the layer
            for trained in (whole_model, model):
                next(trained.parameters()).grad[0, 0] = float("nan")
        if step == 5:
            resumed_from = copy.deepcopy((optimizer.state_dict(), [p.detach() for p in model.parameters()]))
        counts.clear()
        for group in optimizer.param_groups + whole.param_groups:
            group["lr"] = rate_of(make, step)
        whole.step()
        optimizer.step()
        calls_of_step = dict(counts)
        assert optimizer.skipped == whole.skipped == float(step == 3)
        if step != 3:
            torch.testing.assert_close(optimizer.grad_norm, whole.grad_norm, rtol=1e-5, atol=0)
    ordinary = copy.deepcopy(optimizer.state_dict())
    own_bytes = bytes_of_state(optimizer.optim)
    resumed, calls_of_load = resume(make, resumed_from, halves, counts)
    with optimizer.evaluation_weights(), whole.evaluation_weights():
        evaluated, alike = ([p.detach().clone() for p in some.parameters()] for some in (model, whole_model))
    if hasattr(whole, "layer_report"):
        report, expected = optimizer.layer_report(), whole.layer_report()
        torch.testing.assert_close(report, expected, rtol=1e-4, atol=1e-9, equal_nan=True)
    return {
        "weights": [p.detach().clone() for p in model.parameters()],
        "expected": [p.detach().clone() for p in whole_model.parameters()],
        "resumed": resumed,
        "evaluated": evaluated,
        "expected_evaluated": alike,
        "state": ordinary["state"],
        "expected_state": whole.state_dict()["state"],
        "groups": ordinary["param_groups"],
        "expected_groups": whole.state_dict()["param_groups"],
        "bytes": own_bytes,
        "whole_bytes": bytes_of_state(whole),
        "calls": calls_of_step,
        "calls_of_load": calls_of_load,
        "elements_reduced_per_step": sum(reduced) / 7,
    }


def rate_of(make: partial, step: int) -> torch.Tensor:
    return torch.tensor(make.keywords.get("lr", 0.01) * 0.9**step, dtype=torch.float64)


def resume(make: partial, saved: tuple, halves: slice, counts: Counter) -> tuple[list[torch.Tensor], dict]:
    """The last two steps again, by a new model and optimizer with the saved state; and the collectives of loading."""
    state, weights = saved
    everyone = [state]
    dist.broadcast_object_list(everyone)  # as from a checkpoint, which all ranks read
    model = make_model()
    optimizer = ShardedOptimizer(groups_of(model, make), make)
    with torch.no_grad():
        for param, value in zip(model.parameters(), weights, strict=True):
            param.copy_(value)
    counts.clear()
    optimizer.load_state_dict(everyone[0])
    calls = dict(counts)
    optimizer.exchange_loaded()
    network = DistributedDataParallel(model)
    for step in (5, 6):
        backward(network, samples(step)[halves])
        for group in optimizer.param_groups:
            group["lr"] = rate_of(make, step)
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()], calls


def failed_load() -> str:
    """What all ranks say if a sharded average cannot be loaded on rank 1."""
    make, rank = FAMILY["schedule_free"], dist.get_rank()
    model = make_model()
    optimizer = ShardedOptimizer(groups_of(model, make), make)
    backward(model, samples(0))
    optimizer.step()
    everyone = [copy.deepcopy(optimizer.state_dict())]
    dist.broadcast_object_list(everyone)
    if rank == 1:
        everyone[0]["state"] = {index: {"step": torch.ones(())} for index in everyone[0]["state"]}
    try:
        World(rank, rank, 2, torch.device("cpu")).run_on_all_ranks(lambda: optimizer.load_state_dict(everyone[0]))
    except ConfigError as error:
        return str(error)
    return ""


def slices(kernel: str, dtype: torch.dtype) -> dict:
    """FSDP2, whose slices of a layer are uneven here (3 rows of 41), against the same optimizer on whole layers."""
    whole_model, model = make_model().to(dtype), make_model().to(dtype)
    fully_shard(model)
    make = partial(NVLamb, lr=0.01, weight_decay=0.01, kernel=kernel)
    whole, optimizer = make(whole_model.named_parameters()), make(model.named_parameters())
    for step in range(6):
        for trained in (whole_model, model):
            backward(trained, samples(step).to(dtype))
        if step == 3:
            next(whole_model.parameters()).grad[0, 0] = float("nan")
            if dist.get_rank() == 0:
                next(model.parameters()).grad.to_local()[0, 0] = float("nan")
        whole.step()
        optimizer.step()
        assert optimizer.skipped == whole.skipped == float(step == 3)
    torch.testing.assert_close(
        optimizer.grad_norm, whole.grad_norm, rtol=1e-4 if dtype == torch.float32 else 1e-2, atol=0
    )
    again = make(model.named_parameters())
    again.load_state_dict(whole.state_dict())  # from an ordinary state dict
    first = next(model.parameters())
    torch.testing.assert_close(
        again.state[first]["exp_avg"].full_tensor(), whole.state[next(whole_model.parameters())]["exp_avg"]
    )
    return {
        "weights": [p.detach().full_tensor() for p in model.parameters()],
        "expected": [p.detach().clone() for p in whole_model.parameters()],
        "local_sizes": [p.to_local().numel() for p in model.parameters()],
        "whole_sizes": [p.numel() for p in whole_model.parameters()],
    }


def tensor_parallel(shape: tuple[int, int], kernel: str) -> dict:
    """FSDP2 over tensor parallelism, against the same optimizer on whole layers.

    Layers are cut by columns, by rows with a replicated bias, and only by FSDP2, on a mesh of one dimension. In one
    step a gradient is a partial sum.
    """
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("dp", "tp"))
    whole_model, model = make_model(), make_model()
    parallelize_module(
        model,
        mesh["tp"],
        {"0": ColwiseParallel(output_layouts=Replicate()), "3": RowwiseParallel(input_layouts=Replicate())},
    )
    fully_shard(model, mesh=mesh["dp"])
    make = partial(NVLamb, lr=0.01, weight_decay=0.01, kernel=kernel)
    whole, optimizer = make(whole_model.parameters()), make(model.parameters())
    for step in range(4):
        for trained in (whole_model, model):
            backward(trained, samples(step))
        for param, expected in zip(model.parameters(), whole_model.parameters(), strict=True):
            assert param.grad is not None
            value = distribute_tensor(expected.grad, param.device_mesh, param.placements, src_data_rank=None)
            torch.testing.assert_close(param.grad.full_tensor(), value.full_tensor(), rtol=1e-4, atol=1e-7)
        first = next(model.parameters())
        if step == 2:
            everywhere = first.grad.full_tensor() / dist.get_world_size()
            first.grad = DTensor.from_local(everywhere, mesh, [Partial(), Partial()])
        whole.step()
        optimizer.step()
        torch.testing.assert_close(optimizer.grad_norm, whole.grad_norm, rtol=1e-4, atol=0)
    again = make(model.parameters())
    again.load_state_dict(whole.state_dict())
    moment = again.state[first]["exp_avg"]
    torch.testing.assert_close(moment.full_tensor(), whole.state[next(whole_model.parameters())]["exp_avg"])
    return {
        "placements": {str(param.placements) for param in model.parameters()},
        "weights": [p.detach().full_tensor() for p in model.parameters()],
        "expected": [p.detach().clone() for p in whole_model.parameters()],
        "norms": optimizer.layer_report()[1:],
        "whole_norms": whole.layer_report()[1:],
    }


def strided() -> dict:
    """A layer whose rows are dealt in turns, as FSDP2 over tensor parallelism does it, against the whole layer."""
    mesh, rank = init_device_mesh("cpu", (2,)), dist.get_rank()
    placements = [_StridedShard(0, split_factor=2)]  # rank r of 2 holds rows r and r + 2 of four
    whole = nn.Parameter(torch.arange(12.0).view(4, 3))
    param = nn.Parameter(DTensor.from_local(whole.detach()[rank::2].clone(), mesh, placements))
    expected, optimizer = NVLamb([whole], lr=0.01, kernel="reference"), NVLamb([param], lr=0.01)
    for step in range(3):
        whole.grad = torch.arange(12.0).view(4, 3).cos() + step
        param.grad = DTensor.from_local(whole.grad[rank::2].clone(), mesh, placements)
        expected.step()
        optimizer.step()
    return {
        "rows": param.detach().to_local(),
        "expected": whole.detach()[rank::2],
        "norms": [optimizer.grad_norm.item(), expected.grad_norm.item()],
    }


def flags() -> list[tuple[float, float]]:
    """``skipped`` and ``grad_norm`` where only rank 0's layers have gradients, one infinite; finite ones; and none."""
    layers = [nn.Parameter(torch.ones(20, 20)) for _ in range(4)]
    optimizer = ShardedOptimizer(
        [{"name": "all", "weight_decay": 0.01, "params": [(str(i), layer) for i, layer in enumerate(layers)]}],
        FAMILY["nvlamb"],
    )
    own: list[list[int]] = [[], []]
    mine = [i for i, layer in enumerate(layers) if any(layer is p for p in optimizer.optim.param_groups[0]["params"])]
    dist.all_gather_object(own, mine)
    found = []
    for value in (float("inf"), 3.0, None):
        for i, layer in enumerate(layers):
            layer.grad = torch.full_like(layer, value) if value is not None and i in own[0] else None
        optimizer.step()
        found.append((optimizer.skipped.item(), optimizer.grad_norm.item()))
    return found


def refusals() -> dict:
    """The messages for what is not possible with DTensors."""
    model = make_model()
    fully_shard(model)
    backward(model, samples(0))
    messages = {}
    ordinary = torch.ones(2, requires_grad=True)
    ordinary.grad = torch.ones(2)
    for what, optimizer in {
        "fused": NVLamb(model.parameters(), 0.1, kernel="fused"),
        "mixed": NVLamb([*model.parameters(), ordinary], 0.1),
    }.items():
        try:
            optimizer.step()
        except ConfigError as error:
            messages[what] = str(error)
    for make in (LARS, AdamW, Adam, SGD):
        try:
            make(model.parameters(), 0.1)
        except ConfigError as error:
            messages[make.__name__] = str(error)
    several = make_model()
    several[0].bfloat16()
    for what, unfit in {"few": nn.Linear(1, 1, bias=False), "several": several}.items():
        try:
            ShardedOptimizer(decay_groups(unfit, 0.01), FAMILY["nvlamb"])
        except ConfigError as error:
            messages[what] = str(error)
    return messages


def runs(out: Path, options: list[str], suffix: str = "") -> None:
    """A run of six steps, and the same resuming from its third."""
    world = World(dist.get_rank(), dist.get_rank(), 2, torch.device("cpu"))
    for name in ("through", "again"):
        words = [*options, f"run_dir={out / name}{suffix}", "optimizer.sharded=true"]
        pretrain(load_config("pretrain", words, PretrainConfig), world, StopRequest())
        if world.is_first and name == "through":
            for copied in (f"again{suffix}", f"alone{suffix}"):
                shutil.copytree(out / f"{name}{suffix}", out / copied)
                shutil.rmtree(out / copied / "checkpoints/step_00000006")
        dist.barrier()


def main() -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    counts: Counter = Counter()
    for name in ("all_reduce", "broadcast"):
        count_calls(counts, name)
    result = {
        "sharded": {name: sharded(name, counts) for name in FAMILY},
        "slices": {
            f"{kernel}_{dtype}": slices(kernel, dtype)
            for kernel, dtype in itertools.product(("reference", "foreach", "auto"), (torch.float32, torch.bfloat16))
        },
        "tensor_parallel": {
            f"{shape} {kernel}": tensor_parallel(shape, kernel)
            for shape in ((2, 1), (1, 2))
            for kernel in ("reference", "foreach")
        },
        "strided": strided(),
        "flags": flags(),
        "refusals": refusals(),
        "failed_load": failed_load(),
    }
    torch.save(result, Path(sys.argv[1]) / f"rank{dist.get_rank()}.pt")
    runs(Path(sys.argv[1]), sys.argv[2:])
    runs(Path(sys.argv[1]), [*sys.argv[2:], "optimizer=schedule_free_adamw", "optimizer.lr=0.01"], "_free")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
