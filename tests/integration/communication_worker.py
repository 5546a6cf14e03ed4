"""Two ranks of test_communication.py: what a step all-reduces, how far 16 bit rounds it, errors on one rank."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bert_pretrain.config import PretrainConfig
from bert_pretrain.data.dataset import open_split
from bert_pretrain.distributed import gradients as communication
from bert_pretrain.distributed.preemption import StopRequest
from bert_pretrain.distributed.world import World, open_world
from bert_pretrain.errors import ConfigError
from bert_pretrain.options.config_loading import load_config
from bert_pretrain.training.evaluation import evaluate
from tests.integration.cut_worker import build_trainer


def all_reduce_hook(_: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """What DDP does without a communication hook."""
    tensor = bucket.buffer().div_(dist.get_world_size())
    return dist.all_reduce(tensor, async_op=True).get_future().then(lambda done: done.value()[0])


def one_step(config: PretrainConfig, world: World, gradients: str, micro: int, bucket_mb: float) -> dict[str, Any]:
    """Gradient of the first step, and the elements of each bucket that was all-reduced for it."""
    reduced: list[int] = []
    inner = communication.HOOKS.get(gradients, all_reduce_hook)

    def counting(state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        reduced.append(bucket.buffer().numel())
        return inner(None, bucket)

    cut = replace(
        config,
        batch=replace(config.batch, micro_batch_size=micro),
        communication=communication.CommunicationConfig(gradients, bucket_mb, 600.0),
    )
    kept = dict(communication.HOOKS)
    communication.HOOKS[gradients] = counting
    trainer = build_trainer(cut, world, loss_is_scaled=gradients == "fp16")
    communication.HOOKS.clear()
    communication.HOOKS.update(kept)
    reduced.clear()  # of the dummy batch
    found: list[torch.Tensor] = []

    def keep(*_: object) -> None:
        found.append(torch.cat([parameter.grad.flatten() for parameter in trainer.model.parameters()]))

    trainer.optimizer.register_step_pre_hook(keep)
    steps = trainer.data.steps(0)
    trainer.train_step(next(steps))
    steps.close()
    return {"gradient": found[0], "reduced": list(reduced), "parameters": found[0].numel()}


def collectives_of_a_step(config: PretrainConfig, world: World) -> list[str]:
    """The collectives of a step, by torch's profiler."""
    trainer = build_trainer(config, world)
    steps = trainer.data.steps(0)
    trainer.train_step(next(steps))  # in its first step DDP exchanges the new buckets
    batch = next(steps)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        trainer.train_step(batch)
    steps.close()
    return sorted({event.name for event in profile.events() if event.name.startswith("c10d::")})


def stopped_evaluation(config: PretrainConfig, world: World, requested_in: int) -> tuple[bool, int]:
    """Whether an evaluation was finished, and its batches; rank 1 gets a stop request in batch ``requested_in``."""
    trainer, stop, batches = build_trainer(config, world), StopRequest(), []
    heldout = open_split(config.data, "heldout", config.model.vocab_size)
    assert heldout is not None
    heldout.samples = 19  # in batches of 3: three on rank 0, four on rank 1

    def request(*_: object) -> None:
        batches.append(1)
        if world.rank == 1 and len(batches) == requested_in:
            stop.request()

    trainer.model.register_forward_hook(request)
    row = evaluate(trainer.model, heldout, 3, world, stop)
    return row is not None, len(batches)


def fail_on_rank_1(world: World) -> None:
    if world.rank == 1:
        raise ConfigError("data.dir is 'x', which is no directory")


def main() -> None:
    out, overrides = Path(sys.argv[1]), sys.argv[2:]
    config = load_config("pretrain", overrides, PretrainConfig)
    result: dict[str, Any] = {}
    with open_world("cpu") as world:
        try:
            world.run_on_all_ranks(lambda: fail_on_rank_1(world))
        except ConfigError as error:
            result["error"] = str(error)
        result["collectives"] = collectives_of_a_step(config, world)
        result["evaluations"] = [stopped_evaluation(config, world, requested_in) for requested_in in (1, 3, 4)]
        exact = one_step(config, world, "fp32", 6, 25.0)
        for gradients, micro, bucket_mb in (
            ("fp32", 2, 25.0),
            ("fp32", 6, 0.002),
            ("bf16", 6, 25.0),
            ("fp16", 2, 25.0),
        ):
            step = one_step(config, world, gradients, micro, bucket_mb)
            error = (step["gradient"] - exact["gradient"]).norm() / exact["gradient"].norm()
            name = f"{gradients} {micro} {bucket_mb}"
            result[name] = {"error": error.item(), "reduced": step["reduced"], "parameters": step["parameters"]}
        (out / f"{world.rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
