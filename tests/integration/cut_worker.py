"""A rank of test_cuts.py: three float64 updates with fixed global batches, cut in several ways."""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from bert_pretrain.checkpoint.store import CheckpointStore, Progress
from bert_pretrain.config import PretrainConfig
from bert_pretrain.data.batch_plan import BatchPlan
from bert_pretrain.data.dataset import open_split
from bert_pretrain.data.loader import TrainingData
from bert_pretrain.data.sample_order import SampleOrder
from bert_pretrain.distributed.world import World, open_world
from bert_pretrain.model.bert import build_model
from bert_pretrain.model.precision import MixedPrecision
from bert_pretrain.optim.build import build_optimizer
from bert_pretrain.optim.schedule import learning_rate_table
from bert_pretrain.options.config_loading import load_config
from bert_pretrain.training.metrics import MetricsLog
from bert_pretrain.training.trainer import Trainer


def build_trainer(config: PretrainConfig, world: World, loss_is_scaled: bool = False) -> Trainer:
    shards = open_split(config.data, "train", config.model.vocab_size)
    assert shards is not None
    plan = BatchPlan(config.batch.global_batch_size, config.batch.micro_batch_size, world.size)
    model = build_model(config.model, config.speed, config.seed, world.device).double()
    order = SampleOrder(config.seed, shards.samples, config.data.block_size)
    precision = MixedPrecision(config.precision, world.device)
    precision.scaled = loss_is_scaled
    return Trainer(
        world=world,
        model=model,
        model_config=config.model,
        optimizer=build_optimizer(model, config.optimizer),
        learning_rates=torch.tensor(learning_rate_table(config.optimizer.lr, config.schedule), dtype=torch.float64),
        precision=precision,
        plan=plan,
        data=TrainingData(
            shards, order, plan, world.rank, None, config.data.prefetch, group_by_length=config.speed.group_by_length
        ),
        heldout=None,
        store=CheckpointStore(Path("unused"), 1, None),
        log=MetricsLog(None, config.schedule.total_steps),
        progress=Progress(),
        seed=config.seed,
        config_yaml="",
        measure_peak=lambda _: 1e15,
        data_sheet_rate=None,
        training=config.training,
        checkpoint=config.checkpoint,
        logging=replace(config.logging, layers_every_steps=0),
        communication=config.communication,
        numerics=config.numerics,
    )


def three_updates(config: PretrainConfig, world: World) -> dict:
    trainer = build_trainer(config, world)
    gradients: list[dict] = []

    def keep_gradients(*_: object) -> None:
        named = trainer.model.named_parameters()
        gradients.append({name: parameter.grad.clone() for name, parameter in named})

    trainer.optimizer.register_step_pre_hook(keep_gradients)
    steps = trainer.data.steps(0)
    losses = [trainer.train_step(next(steps)).numbers.tolist() for _ in range(3)]
    steps.close()
    weights = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    return {"gradients": gradients[0], "weights": weights, "numbers": losses}


def main() -> None:
    out, micro_sizes, overrides = Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3:]
    config = load_config("pretrain", overrides, PretrainConfig)
    with open_world("cpu") as world:
        for micro in micro_sizes:
            cut = replace(config, batch=replace(config.batch, micro_batch_size=int(micro)))
            result = three_updates(cut, world)
            if world.is_first:
                torch.save(result, out / f"{world.size}x{micro}.pt")


if __name__ == "__main__":
    main()
