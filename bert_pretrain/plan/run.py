"""The arithmetic of a run before it starts: batch, tokens, epochs, warm-up, FLOPs, memory, hours.

For a named kind of GPU also the predicted time of a step and how it scales (``scaling.py``). Checks the options, the
shards and the run directory; writes nothing but ``plot``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bert_pretrain.config import PretrainConfig
from bert_pretrain.data.batch_plan import AUTO, BatchPlan, even_size
from bert_pretrain.data.dataset import report_single_segments
from bert_pretrain.data.mixture import describe_mixture, open_data_sets, sample_order
from bert_pretrain.data.remote_shards import local_data
from bert_pretrain.errors import require, require_least, require_positive
from bert_pretrain.files.file_system import check_new_file
from bert_pretrain.hub.shape import resolve_if_needed
from bert_pretrain.model.flops import parameter_count, training_flops
from bert_pretrain.optim.schedule import learning_rate
from bert_pretrain.options.entry_point import entry_point
from bert_pretrain.plan.scaling import MASKED_SHARE, GpuConfig, NetworkConfig, Scaling
from bert_pretrain.same_run import check_run_dir, in_stored_order
from bert_pretrain.training.metrics import duration
from bert_pretrain.training.options import MEMORY_SHARE

# Numbers kept for the backward pass, per token and layer: in units of the hidden size (inputs of the six matrix
# products, both LayerNorms, dropout masks, the GELU's input) and of a row of the attention matrix (two copies).
_ACTIVATION_WIDTHS, _ATTENTION_COPIES = 18.0, 2.0
_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass
class PlanConfig(PretrainConfig):
    """Options of ``bert-pretrain plan``: those of pretrain, and the assumed hardware."""

    devices: int
    """Number of ranks to plan for."""
    tokens_per_second: float | None
    """Measured real tokens per second of all devices together; gives the hours."""
    samples: int | None
    """Number of training samples, if data.dir does not exist yet; gives the epochs."""
    gpu: GpuConfig | None
    """Kind of device to predict step times for; null: no prediction."""
    network: NetworkConfig
    device_tokens_per_second: float | None
    """Real tokens per second of forward and backward on one device, as bench step prints it; replaces
    gpu.matrix_share."""
    mean_length: float | None
    """Mean number of real tokens per sample, if padding is not computed; null: data.sequence_length."""
    overlap: bool
    """Whether gradients are all-reduced during the backward pass, as pretrain does."""
    efficiency_floor: float
    """Scaling efficiency below which more devices do not pay."""
    plot: str | None
    """PNG to draw: hours and efficiency from 1 to 4,096 devices."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "device_tokens_per_second", "mean_length", "tokens_per_second")
        require_least(1, self, "devices", "samples")
        longest = self.data.sequence_length
        require((self.mean_length or 0) <= longest, "mean_length", self.mean_length, f"up to {longest}")
        require(0 < self.efficiency_floor < 1, "efficiency_floor", self.efficiency_floor, "between 0 and 1")
        require(self.plot is None or self.plot.endswith(".png"), "plot", self.plot, "the name of a .png file")
        for name in ("plot", "device_tokens_per_second", "mean_length"):  # would have no effect
            value = getattr(self, name)
            require(value is None or self.gpu is not None, name, value, "null, unless gpu names a kind")


@entry_point("plan", PlanConfig)
def main(config: PlanConfig) -> None:
    """Print what a run will take before it starts: batch, tokens, epochs, FLOPs, memory, hours.

        bert-pretrain plan recipe=bert_large_64k_phase1 devices=1024 gpu=h100 plot=scaling.png

    Checks the options, the shards and the run directory. With gpu=KIND it also predicts the time of a step and how
    many devices the batch can use. Writes nothing but plot.
    """
    if config.plot is not None:
        check_new_file(Path(config.plot), "plot", overwrite=True)
    config = in_stored_order(resolve_if_needed(replace(config, data=local_data(config.data))))
    check_run_dir(config)
    gpu = config.gpu
    device, compute = this_machine(config.device) if gpu is None else (gpu.name, gpu.compute)
    if config.precision.compute != "auto":
        compute = config.precision.compute
    if gpu is not None:
        config = with_micro_batch_size(config, gpu, compute)
    samples, mixture = config.samples, []
    if samples is None and config.data.kind == "shards" and Path(config.data.dir).is_dir():
        shards = open_data_sets(config.data, "train", config.model.vocab_size)
        assert shards is not None
        report_single_segments(shards, config.model.next_sentence, print)
        samples = shards.samples
        seen = config.schedule.total_steps * config.batch.global_batch_size
        mixture = describe_mixture(shards, sample_order(config.data, shards, config.seed, print), seen)
    print(describe_plan(config, config.devices, device, compute, samples, mixture))
    if config.tokens_per_second is not None:
        tokens = config.schedule.total_steps * config.batch.global_batch_size * config.data.sequence_length
        hours = duration(tokens / config.tokens_per_second)
        rate = config.tokens_per_second
        print(f"  {'time':<14}at most {hours} at {rate:,.0f} tokens/s")
    if gpu is None:
        return
    scaling = scaling_of(config, gpu)
    print(describe_scaling(config, scaling))
    if config.plot is not None:
        from bert_pretrain.plan.figure import draw_scaling  # matplotlib takes long to import

        title = f"{gpu.name}, {gpu.per_node} a node, {config.network.gb_per_s:g} GB/s between nodes"
        batch = config.batch.global_batch_size
        steps = config.schedule.total_steps
        draw_scaling(Path(config.plot), title, scaling, batch, steps, config.efficiency_floor)
        print(f"  {'figure':<14}{config.plot}")


def this_machine(device: str) -> tuple[str, str]:
    """Device and compute type of this machine, found without importing torch."""
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
    """The predicted time of a step on ``devices`` devices, and up to how many devices the batch scales."""
    batch = config.batch.global_batch_size
    steps = config.schedule.total_steps
    floor = config.efficiency_floor
    step = scaling.step(batch, config.devices)
    parts = (
        f"compute {step.compute / step.total:.1%}, exposed all-reduce {step.exposed / step.total:.1%} (whole "
        f"all-reduce: {_ms(step.all_reduce)}), optimizer {step.optimizer / step.total:.1%}"
    )
    total = duration(step.total * steps)
    efficiency = scaling.efficiency(batch, config.devices)
    peak = scaling.gpu.matrix_tflops
    samples = batch / config.devices / step.total
    rate = samples * scaling.mean_length
    mfu = samples * scaling.sample_flops() / (peak * 1e12)
    return (
        f"  {'predicted':<14}{_ms(step.total)} a step: {parts}\n"
        f"  {'':<14}{rate:,.0f} real tokens/s a device, {mfu:.0%} MFU of the data sheet's {peak:g} TFLOP/s\n"
        f"  {'':<14}{total} for {steps:,} steps; scaling efficiency {efficiency:.1%}\n"
        f"  {'':<14}at least {floor:.0%} efficient up to {scaling.most_efficient_devices(batch, floor):,} devices"
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms" if seconds < 10 else f"{seconds:,.1f} s"


def describe_plan(
    config: PretrainConfig,
    devices: int,
    device: str,
    compute: str,
    samples: int | None,
    mixture: Sequence[tuple[str, str]] = (),
) -> str:
    """The plan of a run, one line per quantity. Raises ``ConfigError`` if there are fewer samples than ranks.

    ``mixture``: the rows of ``describe_mixture``.
    """
    rows = [
        *_batch_rows(config, devices, device),
        *_length_rows(config, None if mixture else samples),
        *mixture,
        *_memory_rows(config, devices, compute),
    ]
    title = f"plan for {devices:,} x {device}, matrix products in {compute}"
    return "\n".join([title, *(f"  {name:<14}{text}" for name, text in rows)])


def _batch_rows(config: PretrainConfig, devices: int, device: str) -> list[tuple[str, str]]:
    plan = BatchPlan(config.batch.global_batch_size, config.batch.samples_at_once(config.data.sequence_length), devices)
    slices = [plan.rank_slice(rank) for rank in (0, devices - 1)]
    fewest, most = (stop - start for start, stop in slices)
    per_rank = f"{fewest}" if fewest == most else f"{fewest} or {most}"
    accumulations = sorted({plan.accumulation(0), plan.accumulation(devices - 1)})
    count = " or ".join(map(str, accumulations))
    plural = "es" if accumulations[-1] > 1 else ""
    size = min(plan.micro_batch_size, most)
    even = even_size(most, plan.micro_batch_size)
    rows = [
        ("global batch", f"{plan.global_batch_size:,} samples = {devices:,} ranks x {per_rank}"),
        ("", f"{count} micro-batch{plural} of up to {size} on each rank"),
    ]
    compiled = device.lower() != "cpu" if config.speed.compile is None else config.speed.compile
    work = accumulations[-1] * size
    if compiled and work > 1.05 * most:
        padding = f"{1 - most / work:.0%} of it padding"
        rows.append(("", f"compiled, that is {work} samples, {padding}; batch.micro_batch_size={even} has less"))
    return rows


def _length_rows(config: PretrainConfig, samples: int | None) -> list[tuple[str, str]]:
    steps = config.schedule.total_steps
    batch = config.batch.global_batch_size
    length = config.data.sequence_length
    masked = round(MASKED_SHARE * config.data.sequence_length)
    seen = steps * batch
    flops = training_flops(config.model, seen, seen * length, seen * length**2, seen * masked)
    epochs = "" if not samples else f" = {seen / samples:,.2f} epochs of {samples:,}"
    frozen = ", as if nothing was frozen" if config.optimizer.freeze else ""
    last = learning_rate(steps - 1, config.optimizer.lr, config.schedule)
    schedule = config.schedule
    shape = f"{schedule.warmup:,} of them warm-up to lr {config.optimizer.lr:g}, then {schedule.shape}"
    shape += f", the last {schedule.decay:,} decay ({schedule.decay_form})" * (schedule.decay > 0)
    return [
        ("steps", f"{steps:,}, {shape}; lr of the last step {last:.2e}"),
        ("samples", f"{seen:,}{epochs}"),
        ("tokens", f"at most {seen * length:,} ({length} a sample)"),
        ("model FLOPs", f"{flops:.3g} without padding, {flops / steps:.3g} a step{frozen}"),
    ]


def _memory_rows(config: PretrainConfig, devices: int, compute: str) -> list[tuple[str, str]]:
    length = config.data.sequence_length
    samples = min(config.batch.samples_at_once(length), -(-config.batch.global_batch_size // devices))
    return [
        ("parameters", f"{parameter_count(config.model):,}"),
        ("memory", f"{_gib(_state_bytes(config, devices))} for weights, gradients and moments"),
        ("", f"{_gib(_cache_bytes(config, compute))} for the cached weights in {compute}"),
        ("", f"about {_gib(samples * _sample_bytes(config, compute))} of activations for a micro-batch"),
    ]


def _state_bytes(config: PretrainConfig, devices: int) -> float:
    """Weights, gradients and moments, in float32."""
    moments = config.optimizer.moments / (devices if config.optimizer.sharded else 1)
    return 4 * parameter_count(config.model) * (2 + moments)


def _cache_bytes(config: PretrainConfig, compute: str) -> float:
    """Approximate size of the weight cache; in float32 it holds only the joined QKV weights."""
    model = config.model
    if compute != "fp32":
        return parameter_count(model) * _BYTES[compute]
    return 4 * 3 * model.hidden_size**2 * model.num_hidden_layers * config.speed.fused_qkv


def _sample_bytes(config: PretrainConfig, compute: str) -> float:
    """Approximate activations of one sample."""
    model, length = config.model, config.data.sequence_length
    per_layer = _ACTIVATION_WIDTHS * model.hidden_size + _ATTENTION_COPIES * model.num_attention_heads * length
    logits = 3 * MASKED_SHARE * model.vocab_size * 4
    return length * (model.num_hidden_layers * per_layer * _BYTES[compute] + logits)


def with_micro_batch_size(config: PlanConfig, gpu: GpuConfig, compute: str) -> PlanConfig:
    """Replace ``batch.micro_batch_size=auto`` by the number of samples that fill the memory of ``gpu``.

    Raises ``ConfigError`` if not even one fits.
    """
    if config.batch.micro_batch_size != AUTO:
        return config
    free = MEMORY_SHARE * 1e9 * gpu.memory_gb - _state_bytes(config, config.devices) - _cache_bytes(config, compute)
    share = -(-config.batch.global_batch_size // config.devices)
    most = min(int(free / _sample_bytes(config, compute)), share)
    require(most >= 1, "batch.micro_batch_size", AUTO, f"a model of which one sample fits into {gpu.memory_gb:g} GB")
    return replace(config, batch=replace(config.batch, micro_batch_size=even_size(share, most)))


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"
