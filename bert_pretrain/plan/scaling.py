"""Predicts the time of a step on N devices from data sheets or a measured rate.

    step       = compute + exposed all-reduce + optimizer
    compute    = the micro-batches of the rank with the most samples, each its FLOPs / (peak * matrix_share), but at
                 least the time to launch its kernels; with model.attention=eager also the memory traffic of the scores
    all-reduce = 2 (N-1)/N * gradient bytes / bandwidth of the slowest link (a ring) + 2 log2(N) hops for each bucket
    exposed    = the part that does not overlap with the backward pass (2/3) of the last micro-batch; at least the last
                 bucket, which holds the word embeddings: they are tied to the decoder, so their gradient completes last
    optimizer  = bytes accessed / memory bandwidth; sharded: one rank's share of them, then an all-gather of the weights

Not included: evaluation, checkpoints, waiting for data, stragglers. Times are in seconds, sizes in bytes.
"""

import math
from dataclasses import dataclass

from bert_pretrain.data.batch_plan import BatchPlan
from bert_pretrain.distributed.options import CommunicationConfig
from bert_pretrain.errors import require, require_choice, require_least, require_positive
from bert_pretrain.model.flops import parameter_count, training_flops
from bert_pretrain.model.options import ModelConfig

MOST_DEVICES = 4096
MASKED_SHARE = 0.15  # BERT's; the real share is known only once the shards are read
_KERNELS_PER_LAYER = 75  # forward and backward of one layer, in eager mode
_NORM_BYTES = 4  # per parameter: the gradient, for ||G||
_UPDATE_BYTES = 44  # per parameter: gradient, weight and moments, read and written
_WEIGHT_BYTES = 4
# Memory traffic of one materialised 16-bit attention score: 20 accesses. Forward 8.5: the product writes it; scale and
# mask, softmax, and dropout each read and write; the product reads; the dropout mask is half an access. Backward 11.5.
_SCORE_BYTES = 40
_BACKWARD = 2 / 3  # of a micro-batch


@dataclass
class GpuConfig:
    """Options ``gpu.*`` of the plan: a device and its node."""

    name: str
    """Name in the output."""
    compute: str
    """Type that precision.compute=auto selects on this device: bf16, fp16 or fp32."""
    matrix_tflops: float
    """Peak dense TFLOP/s of matrix products in that type."""
    matrix_share: float
    """Share of the peak that a large micro-batch reaches (MFU of forward and backward)."""
    memory_gb_per_s: float
    """Memory bandwidth in GB/s."""
    launch_us: float
    """Microseconds to launch one kernel; a lower bound for small micro-batches."""
    per_node: int
    """Devices in a node."""
    node_gb_per_s: float
    """One-way GB/s of a device to the others of its node."""
    memory_gb: float
    """Memory in GB; batch.micro_batch_size=auto fills it."""

    def __post_init__(self) -> None:
        require_choice("gpu.compute", self.compute, ("bf16", "fp16", "fp32"))
        require_positive(self, "matrix_tflops", "memory_gb_per_s", "node_gb_per_s", "memory_gb", prefix="gpu.")
        require(0 < self.matrix_share <= 1, "gpu.matrix_share", self.matrix_share, "above 0, up to 1")
        require_least(0, self, "launch_us", prefix="gpu.")
        require_least(1, self, "per_node", prefix="gpu.")


@dataclass
class NetworkConfig:
    """Options ``network.*`` of the plan: the network between nodes."""

    gb_per_s: float
    """One-way GB/s of a node, over all its adapters."""
    share: float
    """Share of the bandwidth that large messages reach."""
    latency_us: float
    """Microseconds per hop."""

    def __post_init__(self) -> None:
        require_positive(self, "gb_per_s", prefix="network.")
        require(0 < self.share <= 1, "network.share", self.share, "above 0, up to 1")
        require_least(0, self, "latency_us", prefix="network.")


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step by phase."""

    compute: float
    all_reduce: float
    """All of it, overlapped or not."""
    exposed: float
    """The part of the all-reduce that the devices wait for."""
    optimizer: float

    @property
    def total(self) -> float:
        """Seconds per step."""
        return self.compute + self.exposed + self.optimizer


@dataclass(frozen=True)
class Scaling:
    """A recipe on devices of one kind."""

    model: ModelConfig
    sequence_length: int
    mean_length: float
    """Real (computed) tokens per sample."""
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
        return training_flops(self.model, 1, mean, self.squared_length(), MASKED_SHARE * mean)

    def squared_length(self) -> float:
        """Mean squared length, for lengths uniform around ``mean_length`` up to L; at most mean times L."""
        mean, longest = self.mean_length, self.sequence_length
        return min(mean**2 + (longest - mean) ** 2 / 3, mean * longest)

    def _micro_batch(self, samples: int) -> float:
        sample = self.sample_flops() / (self.gpu.matrix_tflops * 1e12 * self.gpu.matrix_share)
        if self.model.attention == "eager":
            scores = self.model.num_hidden_layers * self.model.num_attention_heads * self.squared_length()
            sample += _SCORE_BYTES * scores / (self.gpu.memory_gb_per_s * 1e9)
        if self.device_tokens_per_second is not None:
            sample = self.mean_length / self.device_tokens_per_second
        launches = self.model.num_hidden_layers * _KERNELS_PER_LAYER * self.gpu.launch_us * 1e-6
        return max(samples * sample, launches)

    def _all_reduce(self, size: float, messages: int, devices: int) -> float:
        """Seconds to all-reduce ``size`` bytes over all devices in ``messages`` buckets."""
        if devices == 1:
            return 0.0
        inside = self.gpu.node_gb_per_s * 1e9
        between = self.network.gb_per_s * 1e9
        slowest = inside if devices <= self.gpu.per_node else min(inside, between)
        hops = 2 * math.ceil(math.log2(devices)) * self.network.latency_us * 1e-6
        return 2 * (devices - 1) / devices * size / (slowest * self.network.share) + messages * hops

    def step(self, global_batch_size: int, devices: int) -> StepTime:
        """One step of ``global_batch_size`` samples. Raises ``ConfigError`` if there are fewer samples than ranks."""
        plan = BatchPlan(global_batch_size, self.micro_batch_size, devices)
        sizes = [stop - start for start, stop in plan.micro_batches(devices - 1)]  # no rank has more than the last
        parameters = parameter_count(self.model)
        words = self.model.vocab_size * self.model.hidden_size
        buckets = math.ceil(4 * parameters / (self.communication.bucket_mb * 2**20))
        width = 4 if self.communication.gradients == "fp32" else 2
        all_reduce = exposed = self._all_reduce(width * parameters, buckets, devices)
        if self.overlap:
            backward = _BACKWARD * self._micro_batch(sizes[-1])
            last = max(words, min(parameters, self.communication.bucket_mb * 2**20 / 4))
            exposed = max(all_reduce - backward, self._all_reduce(width * last, 1, devices))
        shards = devices if self.sharded else 1
        accessed = (_NORM_BYTES + _UPDATE_BYTES / shards) * parameters
        optimizer = accessed / (self.gpu.memory_gb_per_s * 1e9)
        if self.sharded:  # an all-gather is half an all-reduce
            optimizer += self._all_reduce(_WEIGHT_BYTES * parameters, shards, devices) / 2
        compute = sum(self._micro_batch(size) for size in sizes)
        return StepTime(compute, all_reduce, exposed, optimizer)

    def efficiency(self, global_batch_size: int, devices: int) -> float:
        """Speed on N devices relative to N times the speed on one."""
        return self.step(global_batch_size, 1).total / (devices * self.step(global_batch_size, devices).total)

    def most_efficient_devices(self, global_batch_size: int, floor: float) -> int:
        """The largest power of two, up to ``MOST_DEVICES``, with an efficiency of at least ``floor``."""
        candidates = powers_of_two(min(MOST_DEVICES, global_batch_size))
        return max((n for n in candidates if self.efficiency(global_batch_size, n) >= floor), default=1)


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4 and so on, up to ``most``."""
    return [2**exponent for exponent in range(most.bit_length())]
