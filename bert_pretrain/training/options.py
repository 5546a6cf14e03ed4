"""Options ``training.*``, ``checkpoint.*``, ``logging.*`` and ``numerics.*``."""

import re
from dataclasses import dataclass

from bert_pretrain.errors import ConfigError, require, require_choice, require_least, require_positive
from bert_pretrain.trackers.choice import TRACKERS

MEMORY_SHARE = 0.92
"""Share of a GPU's memory that a run may fill; the rest is for fragmentation and for other libraries."""
_MOST_PROFILED = 20  # steps: a trace has megabytes a step, and a viewer has to hold it


@dataclass
class TrainingConfig:
    """Options ``training.*``."""

    evaluate_every_steps: int
    """Applied steps between two evaluations on the held-out shards. There is always one after the last step."""
    stop_after_minutes: float | None
    """Minutes after the start of the process at which the run saves and exits with status 75, to be started again;
    null: no limit."""

    def __post_init__(self) -> None:
        require_least(1, self, "evaluate_every_steps", prefix="training.")
        require_positive(self, "stop_after_minutes", prefix="training.")


@dataclass
class LoggingConfig:
    """Options ``logging.*``."""

    every_steps: int
    """Applied steps between two logged steps (a line of output, a row of metrics.jsonl)."""
    layers_every_steps: int
    """Applied steps between two rows of trust ratios and norms by layer, for layer-wise optimizers; 0: none."""
    trackers: list[str]
    """Where the metrics go beside metrics.jsonl: any of ``wandb``, ``tensorboard``, ``mlflow``, ``trackio``. Each needs
    the extra of its name."""
    project: str
    """The project in wandb and trackio, the experiment in mlflow."""
    mlflow_uri: str | None
    """Address of mlflow's server or store, such as ``http://HOST:5000`` or ``sqlite:///mlflow.db``. null: what
    MLFLOW_TRACKING_URI says, else mlflow's default."""
    wandb: str | None
    """How wandb logs: ``offline``, ``online``, or ``auto``: online if there is an API key, else offline. A value adds
    wandb to the trackers. null: auto, where the trackers name it; ``disabled``: never."""
    wandb_project: str | None
    """The name of ``project`` until version 0.2; replaces it. null: not given."""
    profile_steps: list[int] | None = None
    """``[FIRST, LAST]``: write a trace of these steps, up to 20, and on CUDA a snapshot of the memory, into
    ``run_dir/profile``. null: none."""

    def __post_init__(self) -> None:
        require_least(1, self, "every_steps", prefix="logging.")
        require_least(0, self, "layers_every_steps", prefix="logging.")
        for name in self.trackers:
            require_choice("logging.trackers", name, TRACKERS)
        require(bool(self.project.strip()), "logging.project", self.project, "a name")
        if re.search("://[^/]*:[^/]*@", self.mlflow_uri or ""):  # the options are stored and shown
            raise ConfigError("logging.mlflow_uri holds a password; give that address in MLFLOW_TRACKING_URI instead")
        require_choice("logging.wandb", self.wandb, ("disabled", "offline", "online", "auto", None))
        if self.wandb == "disabled" and "wandb" in self.trackers:
            raise ConfigError("logging.trackers has wandb, but logging.wandb is 'disabled'; give one of the two")
        steps = self.profile_steps
        fits = steps is None or (len(steps) == 2 and 1 <= steps[0] <= steps[1] < steps[0] + _MOST_PROFILED)
        allowed_steps = f"[FIRST, LAST], from 1 on and up to {_MOST_PROFILED} steps, or null"
        require(fits, "logging.profile_steps", steps, allowed_steps)

    def chosen_trackers(self) -> list[str]:
        """``trackers``, each once, with wandb where the option ``wandb`` asks for it."""
        asked = ["wandb"] if self.wandb not in (None, "disabled") else []
        return list(dict.fromkeys([*self.trackers, *asked]))


@dataclass
class NumericsConfig:
    """Options ``numerics.*``."""

    max_skipped_in_a_row: int
    """The run fails after this many skipped steps (gradient not finite) in a row."""
    spike_deviations: float
    """A loss is a spike if it exceeds the running mean by this many mean distances of neighbouring losses."""
    on_spike: str
    """``continue`` reports and counts loss spikes; ``rewind`` also goes back to the newest checkpoint and skips the
    samples between it and the spike."""
    max_rewinds: int
    """The run fails if it has to rewind to the same checkpoint more often than this."""

    def __post_init__(self) -> None:
        require_least(1, self, "max_skipped_in_a_row", "max_rewinds", prefix="numerics.")
        require_positive(self, "spike_deviations", prefix="numerics.")
        require_choice("numerics.on_spike", self.on_spike, ("continue", "rewind"))


@dataclass
class CheckpointConfig:
    """Options ``checkpoint.*``."""

    every_steps: int
    """Applied steps between two checkpoints. The last step always gets one."""
    keep_last: int
    """How many of the newest valid checkpoints to keep. An older one is removed only when a newer one is on disk."""
    keep_every_steps: int
    """Keep the checkpoints of multiples of this step for good; a multiple of ``every_steps``, or 0 for none."""
    max_failed_saves: int
    """The run ends after this many saves in a row that failed (a full disk, no permission, an outage). Training goes on
    while a checkpoint is written, but for the last of these attempts; with 1 it waits for every one."""

    def __post_init__(self) -> None:
        require_least(1, self, "every_steps", "keep_last", "max_failed_saves", prefix="checkpoint.")
        every = self.keep_every_steps
        allowed = f"0 for none, or a multiple of checkpoint.every_steps ({self.every_steps})"
        require(every >= 0 and every % self.every_steps == 0, "checkpoint.keep_every_steps", every, allowed)
