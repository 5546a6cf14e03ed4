"""What a step takes on N devices: arithmetic, from a machine's data sheet or a measured rate.

    step       = compute + exposed communication + optimizer
    compute    = the busiest rank's micro-batches, each its FLOPs / (peak * share), or the launching of its kernels;
                 with model.attention=eager also the attention scores' passes over memory
    reduction  = 2 (N-1)/N * gradient bytes / slowest cable + 2 log2(N) hops for each bucket           (a ring's bytes)
    exposed    = what the last micro-batch's backward, two thirds of it, does not cover; at least the last bucket, with
                 the word embeddings, whose gradient is complete last: the decoder is tied to them
    optimizer  = bytes touched / memory bandwidth; sharded: a rank's share of them, then the weights travel once

Not in it: evaluation, checkpoints, waiting for data, stragglers. All times in seconds, sizes in bytes.
"""

import math
from dataclasses import dataclass

from bert_pretrain.data.batch_plan import BatchPlan
from bert_pretrain.distributed.options import CommunicationConfig
from bert_pretrain.errors import require
from bert_pretrain.model.flops import parameter_count, training_flops
from bert_pretrain.model.options import ModelConfig

_MASKED_SHARE = 0.15  # BERT's
_KERNELS_PER_LAYER = 75  # forward and backward of one layer, in eager mode
_NORM_BYTES, _UPDATE_BYTES = 4, 44  # a parameter: its gradient for ||G||; then gradient, weight, moments, in and out
_WEIGHT_BYTES = 4
# An attention score that is kept, 16 bit, 20 passes over memory: forward the product writes it, scale with mask,
# softmax and dropout each read and write, the product reads, and the dropout mask is half a pass (8.5); backward 11.5
_SCORE_BYTES = 40
_BACKWARD = 2 / 3  # of a micro-batch


@dataclass
class GpuConfig:
    """Options ``gpu.*`` of the plan: a device and the node it is in."""

    name: str
    compute: str
    """What ``precision.compute=auto`` is on it."""
    matrix_tflops: float
    """Peak of dense matrix products in the compute type."""
    matrix_share: float
    """Share of that peak that a large micro-batch reaches."""
    memory_gb_per_s: float
    launch_us: float
    """To start one kernel; bounds small micro-batches from below."""
    per_node: int
    node_gb_per_s: float
    """Of one device to the others of its node, one way."""
    memory_gb: float
    """What it holds; ``batch.micro_batch_size=auto`` fills it."""

    def __post_init__(self) -> None:
        require(self.compute in ("bf16", "fp16", "fp32"), "gpu.compute", self.compute, "bf16, fp16, fp32")
        for name in ("matrix_tflops", "memory_gb_per_s", "node_gb_per_s", "memory_gb"):
            require(getattr(self, name) > 0, f"gpu.{name}", getattr(self, name), "a number above 0")
        require(0 < self.matrix_share <= 1, "gpu.matrix_share", self.matrix_share, "above 0, up to 1")
        require(self.launch_us >= 0, "gpu.launch_us", self.launch_us, "0 or more")
        require(self.per_node >= 1, "gpu.per_node", self.per_node, "1 or more")


@dataclass
class NetworkConfig:
    """Options ``network.*`` of the plan: what is between nodes."""

    gb_per_s: float
    """Out of a node, one way, all its adapters together."""
    share: float
    """Of that, what large messages reach."""
    latency_us: float
    """Of one hop."""

    def __post_init__(self) -> None:
        require(self.gb_per_s > 0, "network.gb_per_s", self.gb_per_s, "a number above 0")
        require(0 < self.share <= 1, "network.share", self.share, "above 0, up to 1")
        require(self.latency_us >= 0, "network.latency_us", self.latency_us, "0 or more")


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step, and where they go."""

    compute: float
    reduction: float
    """All of it, hidden behind the backward pass or not."""
    exposed: float
    """The part of the reduction for which the devices wait."""
    optimizer: float

    @property
    def total(self) -> float:
        """Seconds from step to step."""
        return self.compute + self.exposed + self.optimizer


@dataclass(frozen=True)
class Scaling:
    """A recipe on machines of one kind."""

    model: ModelConfig
    sequence_length: int
    mean_length: float
    """Real tokens a sample that are computed."""
    micro_batch_size: int
    communication: CommunicationConfig
    gpu: GpuConfig
    network: NetworkConfig
    overlap: bool
    sharded: bool
    device_tokens_per_second: float | None

    def sample_flops(self) -> float:
        """Model FLOPs of an average sample."""
        mean = self.mean_length
        return training_flops(self.model, 1, mean, self.squared_length(), _MASKED_SHARE * mean)

    def squared_length(self) -> float:
        """Its mean, for lengths spread evenly about ``mean_length`` up to the greatest; at most mean times greatest."""
        mean, greatest = self.mean_length, self.sequence_length
        return min(mean**2 + (greatest - mean) ** 2 / 3, mean * greatest)

    def _micro_batch(self, samples: int) -> float:
        sample = self.sample_flops() / (self.gpu.matrix_tflops * 1e12 * self.gpu.matrix_share)
        if self.model.attention == "eager":
            scores = self.model.num_hidden_layers * self.model.num_attention_heads * self.squared_length()
            sample += _SCORE_BYTES * scores / (self.gpu.memory_gb_per_s * 1e9)
        if self.device_tokens_per_second is not None:
            sample = self.mean_length / self.device_tokens_per_second
        launches = self.model.num_hidden_layers * _KERNELS_PER_LAYER * self.gpu.launch_us * 1e-6
        return max(samples * sample, launches)

    def _cable(self, devices: int) -> float:
        inside, between = self.gpu.node_gb_per_s * 1e9, self.network.gb_per_s * 1e9
        slowest = inside if devices <= self.gpu.per_node else min(inside, between)
        return slowest * self.network.share

    def _travel(self, size: float, messages: int, devices: int) -> float:
        """Seconds to sum ``size`` bytes over all devices, in so many messages."""
        if devices == 1:
            return 0.0
        hops = 2 * math.ceil(math.log2(devices)) * self.network.latency_us * 1e-6
        return 2 * (devices - 1) / devices * size / self._cable(devices) + messages * hops

    def step(self, global_batch_size: int, devices: int) -> StepTime:
        """One step of ``global_batch_size`` samples. Raises ``ConfigError`` where there is no sample for a rank."""
        plan = BatchPlan(global_batch_size, self.micro_batch_size, devices)
        sizes = [stop - start for start, stop in plan.micro_batches(devices - 1)]  # the last rank has most, if any has
        parameters, words = parameter_count(self.model), self.model.vocab_size * self.model.hidden_size
        buckets = math.ceil(4 * parameters / (self.communication.bucket_mb * 2**20))
        width = self.communication.gradient_bytes
        reduction = self._travel(width * parameters, buckets, devices)
        exposed = reduction
        if self.overlap:
            behind = _BACKWARD * self._micro_batch(sizes[-1])
            last = max(words, min(parameters, self.communication.bucket_mb * 2**20 / 4))
            exposed = max(reduction - behind, self._travel(width * last, 1, devices))
        shares = devices if self.sharded else 1
        touched = (_NORM_BYTES + _UPDATE_BYTES / shares) * parameters
        optimizer = touched / (self.gpu.memory_gb_per_s * 1e9)
        if self.sharded:
            optimizer += self._travel(_WEIGHT_BYTES * parameters, shares, devices) / 2  # one way only
        compute = sum(self._micro_batch(size) for size in sizes)
        return StepTime(compute, reduction, exposed, optimizer)

    def efficiency(self, global_batch_size: int, devices: int) -> float:
        """Steps a second of N devices, over N times those of one."""
        return self.step(global_batch_size, 1).total / (devices * self.step(global_batch_size, devices).total)

    def last_paying(self, global_batch_size: int, floor: float, most: int) -> int:
        """The largest power of two, up to ``most`` devices, whose efficiency is not below ``floor``."""
        paying = [
            n for n in powers_of_two(min(most, global_batch_size)) if self.efficiency(global_batch_size, n) >= floor
        ]
        return max(paying, default=1)


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4 and so on, up to ``most``."""
    return [2**exponent for exponent in range(most.bit_length())]


@dataclass(frozen=True)
class ScalingCurve:
    """One global batch on more and more devices."""

    label: str
    devices: list[int]
    hours: list[float]
    efficiency: list[float]
    last_paying: int
    floor: float
