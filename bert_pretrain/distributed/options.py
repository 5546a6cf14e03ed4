"""Options ``communication.*``."""

from dataclasses import dataclass

from bert_pretrain.errors import require


@dataclass
class CommunicationConfig:
    """Options ``communication.*``."""

    gradients: str
    """Type in which gradients are all-reduced: ``fp32``, ``bf16`` or ``fp16``. 16 bit halves the bytes, and every
    addition rounds to 16 bit. ``fp16`` needs ``precision.compute=fp16``, whose loss scale prevents underflow."""
    bucket_mb: float
    """Size of a DDP gradient bucket in MiB of float32. Small buckets overlap more of the backward pass, large ones
    need fewer messages."""
    timeout_seconds: float
    """Seconds after which a rank that is dead or stuck ends the run, with a message that names it; 5 or more."""

    def __post_init__(self) -> None:
        allowed = ("fp32", "bf16", "fp16")
        require(self.gradients in allowed, "communication.gradients", self.gradients, ", ".join(allowed))
        require(self.bucket_mb > 0, "communication.bucket_mb", self.bucket_mb, "a number above 0")
        require(self.timeout_seconds >= 5, "communication.timeout_seconds", self.timeout_seconds, "5 or more")
