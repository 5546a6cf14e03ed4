"""Options ``communication.*``."""

from dataclasses import dataclass

from bert_pretrain.errors import require


@dataclass
class CommunicationConfig:
    """Options ``communication.*``."""

    gradients: str
    """``fp32``, or ``bf16`` or ``fp16`` to send half the bytes: each rank's part is divided by the number of ranks and
    rounded once, and every addition on the way rounds again. ``fp16`` needs fp16 products, whose loss scale keeps
    small gradients above its smallest number."""
    bucket_mb: float
    """Gradients of this many MiB (in float32) travel together. Small buckets set out earlier and overlap more of the
    backward pass, large ones pay the latency less often."""
    timeout_seconds: float
    """A rank that is not heard of for so long, or for which the others wait so long, is named, and the run ends."""

    def __post_init__(self) -> None:
        allowed = ("fp32", "bf16", "fp16")
        require(self.gradients in allowed, "communication.gradients", self.gradients, ", ".join(allowed))
        require(self.bucket_mb > 0, "communication.bucket_mb", self.bucket_mb, "a number above 0")
        require(self.timeout_seconds >= 5, "communication.timeout_seconds", self.timeout_seconds, "5 or more")

    @property
    def gradient_bytes(self) -> int:
        """Bytes of one gradient on the way."""
        return 4 if self.gradients == "fp32" else 2
