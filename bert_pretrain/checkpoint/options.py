"""Options ``checkpoint.*``."""

from dataclasses import dataclass

from bert_pretrain.errors import require


@dataclass
class CheckpointConfig:
    """Options ``checkpoint.*``."""

    every_steps: int
    """Applied steps between two checkpoints. The last step always gets one."""
    keep_last: int
    """How many of the newest checkpoints to keep. An older one is removed only when a newer one is on disk."""
    keep_every_steps: int
    """Keep the checkpoints of multiples of this step for good; a multiple of ``every_steps``, or 0 for none."""

    def __post_init__(self) -> None:
        require(self.every_steps >= 1, "checkpoint.every_steps", self.every_steps, "1 or more")
        require(self.keep_last >= 1, "checkpoint.keep_last", self.keep_last, "1 or more")
        every = self.keep_every_steps
        allowed = f"0 for none, or a multiple of checkpoint.every_steps ({self.every_steps})"
        require(every >= 0 and every % self.every_steps == 0, "checkpoint.keep_every_steps", every, allowed)
