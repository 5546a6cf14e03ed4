"""Entry: ``python -m bert_pretrain.plan recipe=NAME [devices=N] [tokens_per_second=X] ...``.

The arithmetic of a run before it is paid for: how the batch is cut, tokens, epochs, warm-up, FLOPs, memory, hours.
It also checks the configuration, the shards and the run directory, and touches nothing.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from bert_pretrain.batch_plan import BatchPlan
from bert_pretrain.config import PretrainConfig, check_run_dir
from bert_pretrain.data import open_split
from bert_pretrain.errors import ConfigError, require
from bert_pretrain.flops import parameter_count, training_flops
from bert_pretrain.metrics import duration
from bert_pretrain.optim.schedule import learning_rate
from bert_pretrain.precision import compute_dtype
from bert_pretrain.structured import entry_point

# Bytes kept for backward, per token of a micro-batch and layer: in units of the width (inputs of the six matrix
# products, both LayerNorms, dropout masks, the GELU's input) and of the attention matrix's row (two copies).
_ACTIVATION_WIDTHS, _ATTENTION_COPIES = 18.0, 2.0
_MASKED_SHARE = 0.15  # BERT's; what the shards really hold is known only once they are read


@dataclass
class PlanConfig(PretrainConfig):
    """Options of ``python -m bert_pretrain.plan``: those of pretrain, and what is assumed of the machine."""

    devices: int
    """Ranks to plan for."""
    tokens_per_second: float | None
    """A measured rate of real tokens of all devices together; gives the hours."""
    samples: int | None
    """Training samples, where ``data.dir`` does not exist yet."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.devices >= 1, "devices", self.devices, "1 or more")
        rate = self.tokens_per_second
        require(rate is None or rate > 0, "tokens_per_second", rate, "a number above 0")


@entry_point("plan", PlanConfig)
def main(config: PlanConfig) -> None:
    """Print the plan."""
    check_run_dir(config)
    device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
    dtype = compute_dtype(config.precision.compute, device)
    samples = config.samples
    if samples is None and Path(config.data.dir).is_dir():
        shards = open_split(config.data, "train", config.model.vocab_size)
        if shards is None:
            raise ConfigError(f"data.dir {config.data.dir} holds no training samples")
        samples = shards.samples
    print(describe(config, config.devices, device.type, dtype, samples, config.tokens_per_second))


def describe(
    config: PretrainConfig,
    devices: int,
    device: str,
    dtype: torch.dtype,
    samples: int | None,
    tokens_per_second: float | None = None,
) -> str:
    """The plan of a run, a line for each thing that costs. Raises ``ConfigError`` where the batch cannot be cut."""
    rows = [*_batch_rows(config, devices), *_length_rows(config, samples), *_memory_rows(config, devices, dtype)]
    if tokens_per_second is not None:
        tokens = config.schedule.total_steps * config.batch.global_batch_size * config.data.sequence_length
        rows.append(("time", f"at most {duration(tokens / tokens_per_second)} at {tokens_per_second:,.0f} tokens/s"))
    title = f"plan for {devices} x {device}, {str(dtype).removeprefix('torch.')} products"
    return "\n".join([title, *(f"  {name:<14}{text}" for name, text in rows)])


def _batch_rows(config: PretrainConfig, devices: int) -> list[tuple[str, str]]:
    plan = BatchPlan(config.batch.global_batch_size, config.batch.micro_batch_size, devices)
    cuts = [plan.micro_batches(rank) for rank in (0, devices - 1)]
    samples = [cut[-1][1] - cut[0][0] for cut in cuts]
    per_rank = f"{samples[0]}" if samples[0] == samples[1] else f"{samples[0]} or {samples[1]}"
    cut = f"{plan.global_batch_size:,} samples = {devices} ranks x {per_rank}"
    fewest, most = plan.accumulation(0), plan.accumulation(devices - 1)
    count = f"{most}" if fewest == most else f"{fewest} or {most}"
    micro = f"{count} micro-batches of up to {plan.micro_batch_size} on each rank"
    return [("global batch", cut), ("", micro)]


def _length_rows(config: PretrainConfig, samples: int | None) -> list[tuple[str, str]]:
    steps, batch = config.schedule.total_steps, config.batch.global_batch_size
    length, masked = config.data.sequence_length, round(_MASKED_SHARE * config.data.sequence_length)
    seen = steps * batch
    flops = training_flops(config.model, seen, seen * length, seen * length**2, seen * masked)
    epochs = "" if not samples else f" = {seen / samples:,.2f} epochs over {samples:,}"
    warmup = config.schedule.warmup_steps
    last = learning_rate(steps - 1, config.optimizer.lr, config.schedule)
    return [
        ("steps", f"{steps:,}, of them {warmup:,} warm-up to lr {config.optimizer.lr:g}; the last at {last:.2e}"),
        ("samples", f"{seen:,}{epochs}"),
        ("tokens", f"at most {seen * length:,} ({length} a sample)"),
        ("model FLOPs", f"{flops:.3g} if nothing is padded, {flops / steps:.3g} a step"),
    ]


def _memory_rows(config: PretrainConfig, devices: int, dtype: torch.dtype) -> list[tuple[str, str]]:
    parameters = parameter_count(config.model)
    moments = 1 if config.optimizer.algorithm in ("lars", "sgd") else 2
    shares = devices if config.optimizer.sharded else 1
    state = 4 * parameters * (2 + moments / shares)  # float32: weight, gradient, moments
    model, length = config.model, config.data.sequence_length
    size = torch.empty((), dtype=dtype).element_size()
    tokens = config.batch.micro_batch_size * length
    per_layer = _ACTIVATION_WIDTHS * model.hidden_size + _ATTENTION_COPIES * model.num_attention_heads * length
    logits = 3 * _MASKED_SHARE * model.vocab_size * 4
    activations = tokens * (model.num_hidden_layers * per_layer * size + logits)
    return [
        ("parameters", f"{parameters:,}"),
        ("memory", f"{_gib(state)} for weights, gradients and moments"),
        ("", f"about {_gib(activations)} of activations for a micro-batch"),
    ]


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"


if __name__ == "__main__":
    main()
