"""Options ``communication.*``."""

from dataclasses import dataclass

from bert_pretrain.errors import require, require_choice

DEVICES = ("auto", "cpu", "cuda")
_YEAR = 365 * 24 * 3600


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
        require_choice("communication.gradients", self.gradients, ("fp32", "bf16", "fp16"))
        require(0 < self.bucket_mb <= 1e6, "communication.bucket_mb", self.bucket_mb, "above 0, up to 1,000,000")
        seconds = self.timeout_seconds
        require(5 <= seconds <= _YEAR, "communication.timeout_seconds", seconds, f"5 to {_YEAR:,}, a year")
