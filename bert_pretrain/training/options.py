"""Options ``training.*``, ``logging.*`` and ``numerics.*``."""

from dataclasses import dataclass

from bert_pretrain.errors import require


@dataclass
class TrainingConfig:
    """Options ``training.*``: how often the run looks up."""

    evaluate_every_steps: int
    """Applied steps between two evaluations on the held-out shards; the last step always gets one."""
    stop_after_minutes: float | None
    """Counted from the start of the process: then the run saves and ends, asking to be started again; null: never."""

    def __post_init__(self) -> None:
        require(self.evaluate_every_steps >= 1, "training.evaluate_every_steps", self.evaluate_every_steps, "1 or more")
        minutes = self.stop_after_minutes
        require(minutes is None or minutes > 0, "training.stop_after_minutes", minutes, "a number above 0, or null")


@dataclass
class LoggingConfig:
    """Options ``logging.*``."""

    every_steps: int
    """Applied steps between two rows."""
    layers_every_steps: int
    """Applied steps between two rows about the layers (trust ratio, norms), for optimizers that adapt them; 0: none."""
    wandb: str
    """``disabled``, ``offline``, ``online``, or ``auto``: online where a key is found, else offline."""
    wandb_project: str

    def __post_init__(self) -> None:
        require(self.every_steps >= 1, "logging.every_steps", self.every_steps, "1 or more")
        every = self.layers_every_steps
        require(every >= 0, "logging.layers_every_steps", every, "1 or more, or 0 for never")
        allowed = ("disabled", "offline", "online", "auto")
        require(self.wandb in allowed, "logging.wandb", self.wandb, ", ".join(allowed))


@dataclass
class NumericsConfig:
    """Options ``numerics.*``."""

    max_skipped_in_a_row: int
    """Steps in a row whose gradient is not finite, before the run ends with a diagnosis."""
    spike_deviations: float
    """A loss is a spike where it lies this many mean distances of neighbouring losses above the running mean."""
    on_spike: str
    """``continue`` counts and reports spikes; ``rewind`` goes back to the newest checkpoint and passes over the samples
    between it and the spike."""
    max_rewinds: int
    """Rewinds to one checkpoint before the run ends with a diagnosis."""

    def __post_init__(self) -> None:
        limit = self.max_skipped_in_a_row
        require(limit >= 1, "numerics.max_skipped_in_a_row", limit, "1 or more")
        require(self.spike_deviations > 0, "numerics.spike_deviations", self.spike_deviations, "a number above 0")
        require(self.on_spike in ("continue", "rewind"), "numerics.on_spike", self.on_spike, "continue, rewind")
        require(self.max_rewinds >= 1, "numerics.max_rewinds", self.max_rewinds, "1 or more")


MEMORY_SHARE = 0.92  # the rest is for fragments, and for what other libraries take later
