"""Baselines for ``bench step``: a plain training loop around ``transformers``' model, and ``transformers.Trainer``."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from bert_pretrain.config import PretrainConfig
from bert_pretrain.data.collate import MicroBatch, StepBatch
from bert_pretrain.distributed.world import World
from bert_pretrain.model.bert import bert_config


@dataclass
class Measured:
    """A training step to measure, with its network and optimizer."""

    run: Callable[[StepBatch], object]
    network: nn.Module
    optimizer: torch.optim.Optimizer


def plain_script(config: PretrainConfig, world: World) -> Measured:
    """The obvious script: transformers' model and loss with their defaults, labels on all positions, torch's AdamW."""
    model = _plain_model(config).to(world.device)
    network = DistributedDataParallel(model) if world.size > 1 else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optimizer.lr)

    def run(step: StepBatch) -> None:
        micro_batches = list(step.micro_batches)
        for micro_batch in micro_batches:
            out = network(**plain_inputs(micro_batch.to(world.device), config.model.next_sentence))
            (out.loss / len(micro_batches)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Measured(run, network, optimizer)


def plain_inputs(batch: MicroBatch, next_sentence: bool) -> dict[str, Tensor]:
    """The arguments of transformers' model: labels (B, L), -100 at positions that are not masked."""
    labels = torch.full_like(batch.input_ids, -100).flatten()
    predicted = batch.masked_labels >= 0
    labels[batch.masked_positions[predicted]] = batch.masked_labels[predicted]
    mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
    inputs = {
        "input_ids": batch.input_ids,
        "attention_mask": mask,
        "token_type_ids": batch.segment_ids,
        "labels": labels.view_as(batch.input_ids),
    }
    return inputs | {"next_sentence_label": batch.next_sentence_labels} if next_sentence else inputs


def _plain_model(config: PretrainConfig) -> nn.Module:
    shape = bert_config(config.model).to_dict()
    shape.pop("_attn_implementation", None)
    architecture = BertForPreTraining if config.model.next_sentence else BertForMaskedLM
    model: nn.Module = architecture(BertConfig(**shape)).train()
    return model


def transformers_trainer(config: PretrainConfig, device: torch.device, steps: list[list[MicroBatch]]) -> float:
    """Median seconds of a step of ``transformers.Trainer`` with its defaults, in bf16 on a GPU, without the first two.

    Trains on the samples of ``steps``. Needs ``accelerate``.
    """
    cuda = device.type == "cuda"
    arguments = TrainingArguments(
        output_dir="none",  # nothing is saved
        per_device_train_batch_size=len(steps[0][0].input_ids),
        gradient_accumulation_steps=len(steps[0]),
        max_steps=len(steps),
        bf16=cuda,
        use_cpu=not cuda,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    clock = _Clock(device)
    samples = [sample for step in steps for batch in step for sample in _rows(batch, config.model.next_sentence)]
    trainer = Trainer(_plain_model(config), arguments, train_dataset=samples, callbacks=[clock])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return statistics.median(after - before for before, after in list(pairwise(clock.times))[1:])


class _Clock(TrainerCallback):
    """Times at which each step of the Trainer was finished on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.times = device, list[float]()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.times.append(time.perf_counter())


def _rows(batch: MicroBatch, next_sentence: bool) -> Iterator[dict[str, Tensor]]:
    inputs = plain_inputs(batch, next_sentence)
    for row in range(len(batch.input_ids)):
        yield {name: tensor[row] for name, tensor in inputs.items()}
