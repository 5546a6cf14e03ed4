"""Entry: ``python -m bert_pretrain.plan recipe=NAME [devices=N] [gpu=KIND network=KIND plot=PNG] ...``.

The arithmetic of a run before it is paid for: how the batch is cut, tokens, epochs, warm-up, FLOPs, memory, hours; on
devices of a named kind also where the time of a step goes, and how far more of them help (``scaling.py``). It also
checks the configuration, the shards and the run directory, and touches nothing but ``plot``.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from bert_pretrain.config import PretrainConfig, check_run_dir
from bert_pretrain.config_loading import entry_point
from bert_pretrain.data.batch_plan import AUTO, BatchPlan
from bert_pretrain.data.dataset import open_split
from bert_pretrain.errors import ConfigError, require
from bert_pretrain.model.flops import parameter_count, training_flops
from bert_pretrain.optim.schedule import learning_rate
from bert_pretrain.plan.scaling import GpuConfig, NetworkConfig, Scaling, ScalingCurve, powers_of_two
from bert_pretrain.training.metrics import duration
from bert_pretrain.training.options import MEMORY_SHARE

# Bytes kept for backward, per token of a micro-batch and layer: in units of the width (inputs of the six matrix
# products, both LayerNorms, dropout masks, the GELU's input) and of the attention matrix's row (two copies).
_ACTIVATION_WIDTHS, _ATTENTION_COPIES = 18.0, 2.0
_MASKED_SHARE = 0.15  # BERT's; what the shards really hold is known only once they are read
_MOST_DEVICES = 4096
_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}  # of one number
_SMALLER = (1, 4, 16)  # the plot shows the recipe's batch and these parts of it


@dataclass
class PlanConfig(PretrainConfig):
    """Options of ``python -m bert_pretrain.plan``: those of pretrain, and what is assumed of the machine."""

    devices: int
    """Ranks to plan for."""
    tokens_per_second: float | None
    """A measured rate of real tokens of all devices together; gives the hours."""
    samples: int | None
    """Training samples, where ``data.dir`` does not exist yet."""
    gpu: GpuConfig | None
    """The kind of device that step times are predicted for; null: no prediction."""
    network: NetworkConfig
    device_tokens_per_second: float | None
    """Real tokens a second of forward and backward on one device, as ``bench step`` prints them, in place of
    ``gpu.matrix_share``."""
    mean_length: float | None
    """Real tokens a sample, where padding is cut off; null: ``data.sequence_length``."""
    overlap: bool
    """Whether gradients travel during the backward pass, as they do here."""
    efficiency_floor: float
    """Share of N times one device's speed below which the batch no longer pays."""
    plot: str | None
    """A PNG to draw: hours and efficiency from 1 to 4,096 devices."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("device_tokens_per_second", "mean_length"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "a number above 0")
        longest = self.data.sequence_length
        require((self.mean_length or 0) <= longest, "mean_length", self.mean_length, f"up to {longest}")
        require(0 < self.efficiency_floor < 1, "efficiency_floor", self.efficiency_floor, "between 0 and 1")
        for name in ("plot", "device_tokens_per_second", "mean_length"):  # of no effect without
            value = getattr(self, name)
            require(value is None or self.gpu is not None, name, value, "null, unless gpu names a kind")
        require(self.devices >= 1, "devices", self.devices, "1 or more")
        rate = self.tokens_per_second
        require(rate is None or rate > 0, "tokens_per_second", rate, "a number above 0")


@entry_point("plan", PlanConfig)
def main(config: PlanConfig) -> None:
    """Print what a run will take before it starts: how the batch is cut, tokens, epochs, FLOPs, memory, hours.

        bert-pretrain plan recipe=bert_large_64k_phase1 devices=1024 gpu=h100 plot=scaling.png

    Checks the options, the shards and the run directory. With gpu=KIND it also predicts step times and how far more
    devices help. Writes nothing but plot.
    """
    check_run_dir(config)
    kind, compute = this_machine(config.device)
    if config.gpu is not None:
        kind, compute = config.gpu.name, config.gpu.compute
    if config.precision.compute != "auto":
        compute = config.precision.compute
    if config.gpu is not None:
        config = filled(config, config.gpu, compute)
    samples = config.samples
    if samples is None and Path(config.data.dir).is_dir():
        shards = open_split(config.data, "train", config.model.vocab_size)
        if shards is None:
            raise ConfigError(f"data.dir {config.data.dir} holds no training samples")
        samples = shards.samples
    print(describe(config, config.devices, kind, compute, samples, config.tokens_per_second))
    if config.gpu is not None:
        print(describe_scaling(config, scaling_of(config, config.gpu)))
    if config.plot is not None and config.gpu is not None:
        machine = f"{config.gpu.name}, {config.gpu.per_node} a node, {config.network.gb_per_s:g} GB/s between nodes"
        from bert_pretrain.plan.figure import draw_scaling  # matplotlib is slow to load

        draw_scaling(Path(config.plot), machine, scaling_curves(config, scaling_of(config, config.gpu)))
        print(f"  drawn in {config.plot}")


def this_machine(device: str) -> tuple[str, str]:
    """The device that ``device`` means here and what ``precision.compute=auto`` is on it, found without torch."""
    if device == "cuda" or (device == "auto" and Path("/proc/driver/nvidia/version").exists()):
        return "cuda", "bf16"
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    return "cpu", "bf16" if "avx512_bf16" in flags or "amx_tile" in flags else "fp32"


def scaling_of(config: PlanConfig, gpu: GpuConfig) -> Scaling:
    """The recipe on devices of kind ``gpu``."""
    return Scaling(
        model=config.model,
        sequence_length=config.data.sequence_length,
        mean_length=config.mean_length or config.data.sequence_length,
        micro_batch_size=config.batch.samples_at_once(config.data.sequence_length),
        communication=config.communication,
        gpu=gpu,
        network=config.network,
        overlap=config.overlap,
        sharded=config.optimizer.sharded,
        device_tokens_per_second=config.device_tokens_per_second,
    )


def describe_scaling(config: PlanConfig, scaling: Scaling) -> str:
    """Where the time of a step goes on ``devices`` devices, and the largest number that the batch keeps busy."""
    batch, steps = config.batch.global_batch_size, config.schedule.total_steps
    step = scaling.step(batch, config.devices)
    seconds, share = step.total * steps, scaling.efficiency(batch, config.devices)
    paying = scaling.last_paying(batch, config.efficiency_floor, _MOST_DEVICES)
    parts = (
        f"compute {step.compute / step.total:.1%}, waiting for gradients {step.exposed / step.total:.1%} (all their "
        f"travel: {_ms(step.reduction)}), optimizer {step.optimizer / step.total:.1%}"
    )
    return "\n".join(
        [
            f"  {'predicted':<14}{_ms(step.total)} a step: {parts}",
            f"  {'':<14}{duration(seconds)} for {steps:,} steps; scaling efficiency {share:.1%}",
            f"  {'':<14}at least {config.efficiency_floor:.0%} efficient up to {paying:,} devices",
        ]
    )


def scaling_curves(config: PlanConfig, scaling: Scaling) -> list[ScalingCurve]:
    """Hours and efficiency from 1 to 4,096 devices, for the recipe's batch and parts of it over the same samples."""
    curves = []
    for part in _SMALLER:
        batch = config.batch.global_batch_size // part
        if batch < 1:
            continue
        devices = powers_of_two(min(_MOST_DEVICES, batch))
        seen = config.schedule.total_steps * config.batch.global_batch_size
        curves.append(
            ScalingCurve(
                label=f"{batch:,} samples a step",
                devices=devices,
                hours=[scaling.step(batch, n).total * seen / batch / 3600 for n in devices],
                efficiency=[scaling.efficiency(batch, n) for n in devices],
                last_paying=scaling.last_paying(batch, config.efficiency_floor, _MOST_DEVICES),
                floor=config.efficiency_floor,
            )
        )
    return curves


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms" if seconds < 10 else f"{seconds:,.1f} s"


def describe(
    config: PretrainConfig,
    devices: int,
    device: str,
    compute: str,
    samples: int | None,
    tokens_per_second: float | None = None,
) -> str:
    """The plan of a run, a line for each thing that costs. Raises ``ConfigError`` where the batch cannot be cut."""
    rows = [*_batch_rows(config, devices), *_length_rows(config, samples), *_memory_rows(config, devices, compute)]
    if tokens_per_second is not None:
        tokens = config.schedule.total_steps * config.batch.global_batch_size * config.data.sequence_length
        rows.append(("time", f"at most {duration(tokens / tokens_per_second)} at {tokens_per_second:,.0f} tokens/s"))
    title = f"plan for {devices:,} x {device}, {compute} products"
    return "\n".join([title, *(f"  {name:<14}{text}" for name, text in rows)])


def _batch_rows(config: PretrainConfig, devices: int) -> list[tuple[str, str]]:
    plan = BatchPlan(config.batch.global_batch_size, config.batch.samples_at_once(config.data.sequence_length), devices)
    cuts = [plan.micro_batches(rank) for rank in (0, devices - 1)]
    samples = [cut[-1][1] - cut[0][0] for cut in cuts]
    per_rank = f"{samples[0]}" if samples[0] == samples[1] else f"{samples[0]} or {samples[1]}"
    cut = f"{plan.global_batch_size:,} samples = {devices:,} ranks x {per_rank}"
    fewest, most = plan.accumulation(0), plan.accumulation(devices - 1)
    count = f"{most}" if fewest == most else f"{fewest} or {most}"
    size = min(plan.micro_batch_size, samples[1])
    micro = f"{count} micro-batch{'es' if most > 1 else ''} of up to {size} on each rank"
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


def _memory_rows(config: PretrainConfig, devices: int, compute: str) -> list[tuple[str, str]]:
    length = config.data.sequence_length
    samples = min(config.batch.samples_at_once(length), -(-config.batch.global_batch_size // devices))
    return [
        ("parameters", f"{parameter_count(config.model):,}"),
        ("memory", f"{_gib(_state_bytes(config, devices))} for weights, gradients and moments"),
        ("", f"{_gib(_product_bytes(config, compute))} for the weights in the products' type"),
        ("", f"about {_gib(samples * _sample_bytes(config, compute))} of activations for a micro-batch"),
    ]


def _state_bytes(config: PretrainConfig, devices: int) -> float:
    """float32: weight, gradient, moments."""
    moments = 1 if config.optimizer.algorithm in ("lars", "sgd") else 2
    return 4 * parameter_count(config.model) * (2 + moments / (devices if config.optimizer.sharded else 1))


def _product_bytes(config: PretrainConfig, compute: str) -> float:
    """What ``step_weights`` keeps, about: in float32 the joined weights alone."""
    model = config.model
    if compute != "fp32":
        return parameter_count(model) * _BYTES[compute]
    return 4 * 3 * model.hidden_size**2 * model.num_hidden_layers * config.speed.fused_qkv


def _sample_bytes(config: PretrainConfig, compute: str) -> float:
    """Activations of one sample, about."""
    model, length = config.model, config.data.sequence_length
    size = _BYTES[compute]
    per_layer = _ACTIVATION_WIDTHS * model.hidden_size + _ATTENTION_COPIES * model.num_attention_heads * length
    logits = 3 * _MASKED_SHARE * model.vocab_size * 4
    return length * (model.num_hidden_layers * per_layer * size + logits)


def filled(config: PlanConfig, gpu: GpuConfig, compute: str) -> PlanConfig:
    """``config`` with ``batch.micro_batch_size=auto`` as the number of samples that fill a device of kind ``gpu``.

    Raises ``ConfigError`` where not one sample fits.
    """
    if config.batch.micro_batch_size != AUTO:
        return config
    kept = _state_bytes(config, config.devices) + _product_bytes(config, compute)
    free = MEMORY_SHARE * 1e9 * gpu.memory_gb - kept
    most = min(int(free / _sample_bytes(config, compute)), -(-config.batch.global_batch_size // config.devices))
    require(most >= 1, "batch.micro_batch_size", AUTO, f"a model of which a sample fits into {gpu.memory_gb:g} GB")
    return replace(config, batch=replace(config.batch, micro_batch_size=most))


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"


if __name__ == "__main__":
    main()
