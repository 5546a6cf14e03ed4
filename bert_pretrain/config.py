"""The options of every part, composed. Each part's own options stand at the top of its file."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bert_pretrain.checkpoint.options import CheckpointConfig
from bert_pretrain.data.batch_plan import BatchConfig
from bert_pretrain.data.dataset import DataConfig
from bert_pretrain.distributed.options import CommunicationConfig
from bert_pretrain.errors import ConfigError, require
from bert_pretrain.model.options import ModelConfig, PrecisionConfig, SpeedConfig
from bert_pretrain.optim.options import OptimizerConfig, ScheduleConfig
from bert_pretrain.training.options import LoggingConfig, NumericsConfig, TrainingConfig

# What may differ when a run is continued: it changes neither the samples of a step nor, but for the rounding of
# another device, its arithmetic.
_FREE_ON_RESUME = (
    "run_dir",
    "device",
    "init_from",
    "init_moments",
    "batch.micro_batch_size",
    "data.dir",  # the shards themselves are compared by their fingerprint
    "data.tokenizer",
    "data.check",
    "data.prefetch",
    "model.attention",
    "speed.compile",
    "speed.cuda_graphs",
    "speed.fused_loss",
    "speed.pad_vocabulary",
    "precision.tf32",
    "precision.deterministic",
    "optimizer.kernel",
    "communication.bucket_mb",
    "communication.timeout_seconds",
    "optimizer.sharded",
    "logging",
    "training",
    "numerics",
    "checkpoint",
)


@dataclass
class PretrainConfig:
    """Options of ``python -m bert_pretrain.pretrain``."""

    run_dir: str
    """Where metrics, checkpoints and plots go; started again, the run goes on from there."""
    seed: int
    device: str
    """``auto``, ``cpu`` or ``cuda``."""
    init_from: str | None
    """A checkpoint or run directory whose weights the run starts from (a second phase)."""
    init_moments: str
    """With ``init_from``: ``keep`` the optimizer's moments and their count, ``restart`` keeps the moments and counts
    from 0 again (what the published code does between phases), ``reset`` drops both."""
    model: ModelConfig
    speed: SpeedConfig
    data: DataConfig
    batch: BatchConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    precision: PrecisionConfig
    communication: CommunicationConfig
    numerics: NumericsConfig
    training: TrainingConfig
    checkpoint: CheckpointConfig
    logging: LoggingConfig

    def __post_init__(self) -> None:
        require(
            self.init_moments in ("keep", "restart", "reset"), "init_moments", self.init_moments, "keep, restart, reset"
        )
        length, limit = self.data.sequence_length, self.model.max_position_embeddings
        require(length <= limit, "data.sequence_length", length, f"up to model.max_position_embeddings ({limit})")


def resolved_yaml(config: PretrainConfig) -> str:
    """The options of a run as YAML, without what an entry derived from pretrain adds."""
    run = PretrainConfig(**{field.name: getattr(config, field.name) for field in fields(PretrainConfig)})
    return OmegaConf.to_yaml(OmegaConf.structured(run))


def check_run_dir(config: PretrainConfig) -> None:
    """Raise ``ConfigError`` where ``run_dir`` holds another run than ``config`` asks for, or files of none."""
    run_dir = Path(config.run_dir)
    stored = run_dir / "config.yaml"
    if stored.is_file():
        check_same_run(resolved_yaml(config), stored.read_text(encoding="utf-8"), config.run_dir)
    elif (run_dir / "checkpoints").exists() or (run_dir / "metrics.jsonl").exists():
        raise ConfigError(f"run_dir {run_dir} holds a run without a config.yaml; give another run_dir")


def check_same_run(now: str, before: str, run_dir: str) -> None:
    """Compare two resolved configurations in YAML; raise ``ConfigError`` where they are not the same run."""
    new, old = (_flat(OmegaConf.to_container(OmegaConf.create(text))) for text in (now, before))
    differing = [
        key
        for key in sorted(new.keys() | old.keys())
        if new.get(key) != old.get(key) and not any(f"{key}.".startswith(f"{free}.") for free in _FREE_ON_RESUME)
    ]
    if differing:
        pairs = ", ".join(f"{key} was {old.get(key)!r} and is {new.get(key)!r}" for key in differing[:4])
        raise ConfigError(
            f"run_dir {run_dir} belongs to another run: {pairs}; give another run_dir, or init_from={run_dir} for a "
            "run that starts from its weights"
        )


def check_moments(config: PretrainConfig, source: Path) -> None:
    """Raise ``ConfigError`` where the moments in the checkpoint ``source`` mean nothing to ``config``'s optimizer.

    Another algorithm keeps others; another pre-normalization had gradients of another length.
    """
    before = OmegaConf.create((source / "config.yaml").read_text(encoding="utf-8"))
    for name in ("algorithm", "pre_normalization"):
        old, new = OmegaConf.select(before, f"optimizer.{name}"), getattr(config.optimizer, name)
        if config.init_moments != "reset" and old != new:
            raise ConfigError(
                f"init_moments is {config.init_moments!r}, but {source} was trained with optimizer.{name}={old} and "
                f"this run has {new}: its moments do not fit; give init_moments=reset"
            )


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix[:-1]: node}
    return {key: value for name, child in node.items() for key, value in _flat(child, f"{prefix}{name}.").items()}
