"""Two ranks of test_first_step_on_two_ranks.py: rank 1's optimizer kernel is wrong, or raises an error."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bert_pretrain.build import build_trainer
from bert_pretrain.checkpoint.store import CheckpointStore
from bert_pretrain.config import PretrainConfig
from bert_pretrain.distributed.world import World, open_world
from bert_pretrain.optim import nvlamb
from bert_pretrain.options.config_loading import load_config
from bert_pretrain.training import first_step
from bert_pretrain.training.metrics import MetricsLog


def two_steps(options: list[str], world: World, out: Path) -> tuple[list[torch.Tensor], str]:
    """The weights after two steps, and the kernel that computed them."""
    config = load_config("pretrain", options, PretrainConfig)
    log = MetricsLog(out / "metrics.jsonl" if world.is_first else None, 6)
    trainer = build_trainer(config, world, log, CheckpointStore(out / "none", 1, None), "")
    trainer.check_fast_paths()
    steps = trainer.data.steps(0)
    for _ in range(2):
        trainer.train_step(next(steps))
    steps.close()
    inner: Any = trainer.optimizer
    return [param.detach().clone() for param in trainer.model.parameters()], getattr(inner, "optim", inner).kernel


def main() -> None:
    out, options = Path(sys.argv[1]), sys.argv[2:]
    found = {}
    with open_world("cpu") as world:
        for sharded in ("true", "false"):
            own = [*options, f"optimizer.sharded={sharded}"]
            first_step.DEVICES = ()
            foreach = two_steps([*own, "optimizer.kernel=foreach"], world, out)
            first_step.DEVICES = ("cpu",)
            right = nvlamb.KERNELS["fused"]

            def raises(work: Any) -> Any:
                raise RuntimeError("no kernel image is available")

            def wrong(work: Any, right: Any = right) -> Any:
                return right(replace(work, rules=replace(work.rules, bias_correction=False)))

            for name, fault in {"none": right, "raises": raises, "wrong": wrong}.items():
                nvlamb.KERNELS["fused"] = fault if world.rank == 1 else right
                weights, kernel = two_steps(own, world, out)
                equal = all(torch.equal(a, b) for a, b in zip(weights, foreach[0], strict=True))
                found[f"{name}, sharded {sharded}"] = (kernel, equal, weights)
            nvlamb.KERNELS["fused"] = right
    torch.save(found, out / f"rank{world.rank}.pt")


if __name__ == "__main__":
    main()
