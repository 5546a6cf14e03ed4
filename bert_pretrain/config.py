"""The options of a pretraining run, and the checks that compare them with those of an earlier run."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bert_pretrain.data.batch_plan import BatchConfig
from bert_pretrain.data.dataset import DataConfig
from bert_pretrain.distributed.options import CommunicationConfig
from bert_pretrain.errors import ConfigError, require
from bert_pretrain.model.options import ModelConfig, PrecisionConfig, SpeedConfig
from bert_pretrain.optim.options import OptimizerConfig, ScheduleConfig
from bert_pretrain.training.options import CheckpointConfig, LoggingConfig, NumericsConfig, TrainingConfig

# Options that may differ when a run is resumed: they change neither the samples of a step nor, except for rounding, its
# arithmetic.
_MAY_CHANGE_ON_RESUME = (
    "run_dir",
    "device",
    "init_from",
    "init_moments",
    "init_positions",
    "batch.micro_batch_size",
    "data.dir",  # the shards are compared by their fingerprint
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

POSITIONS = ("interpolate", "repeat")
_NEW_OPTIONS = {
    "model.next_sentence": True,
    "speed.packing": False,
    "data.mask_share": None,
    "data.random_share": None,
}
"""Options that runs of earlier versions do not state, and what those runs did."""


@dataclass
class PretrainConfig:
    """Options of ``bert-pretrain pretrain``."""

    run_dir: str
    """Directory for metrics, checkpoints and plots. If it holds this run already, the run is resumed."""
    seed: int
    """Seed of the initial weights, the sample order, dynamic masks and dropout."""
    device: str
    """``cpu``, ``cuda``, or ``auto``: a GPU if there is one."""
    init_from: str | None
    """Model whose weights a new run starts from: a run or a checkpoint of this program, a folder of transformers with
    model_type bert, or such a model's name on the hub. null: random weights."""
    init_moments: str | None
    """With ``init_from``: ``keep`` loads the optimizer's moments and step counts, ``restart`` loads the moments and
    counts from 0 (as NVIDIA's code between phases), ``reset`` loads neither. null: keep where init_from has moments
    that fit, else reset."""
    init_positions: str | None
    """With ``init_from`` and more ``model.max_position_embeddings`` than it has: the new ones are ``interpolate``
    (linearly between the learned ones) or ``repeat`` (the learned ones again). null: refused."""
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
        for name, allowed in (("init_moments", ("keep", "restart", "reset")), ("init_positions", POSITIONS)):
            value = getattr(self, name)
            require(value is None or value in allowed, name, value, ", ".join((*allowed, "null")))
        require(self.device in ("auto", "cpu", "cuda"), "device", self.device, "auto, cpu, cuda")
        length, limit = self.data.sequence_length, self.model.max_position_embeddings
        require(
            limit is None or length <= limit,
            "data.sequence_length",
            length,
            f"up to model.max_position_embeddings ({limit})",
        )


def resolved_yaml(config: PretrainConfig) -> str:
    """The options of a run as YAML, without those that other commands add (plan, bench)."""
    run = PretrainConfig(**{field.name: getattr(config, field.name) for field in fields(PretrainConfig)})
    return OmegaConf.to_yaml(OmegaConf.structured(run))


def check_run_dir(config: PretrainConfig) -> None:
    """Raise ``ConfigError`` if ``run_dir`` holds another run than ``config``, or a run without a ``config.yaml``."""
    run_dir = Path(config.run_dir)
    stored = run_dir / "config.yaml"
    if stored.is_file():
        check_same_run(resolved_yaml(config), stored.read_text(encoding="utf-8"), config.run_dir)
    elif (run_dir / "checkpoints").exists() or (run_dir / "metrics.jsonl").exists():
        raise ConfigError(f"run_dir {run_dir} holds a run without a config.yaml; give another run_dir")


def check_same_run(now: str, before: str, run_dir: str) -> None:
    """Raise ``ConfigError`` if two resolved configurations (YAML) are not the same run."""
    new, old = (_NEW_OPTIONS | _flat(OmegaConf.to_container(OmegaConf.create(text))) for text in (now, before))
    differing = [
        key
        for key in sorted(new.keys() | old.keys())
        if new.get(key) != old.get(key) and not any(f"{key}.".startswith(f"{free}.") for free in _MAY_CHANGE_ON_RESUME)
    ]
    if differing:
        pairs = ", ".join(f"{key} was {old.get(key)!r} and is {new.get(key)!r}" for key in differing[:4])
        raise ConfigError(
            f"run_dir {run_dir} belongs to another run: {pairs}; give another run_dir, or init_from={run_dir} for a "
            "run that starts from its weights"
        )


def moments_fault(config: PretrainConfig, checkpoint: Path) -> str | None:
    """Why the moments in ``checkpoint`` do not fit ``config``'s optimizer; None if they do.

    Another algorithm has other moments, another pre-normalization scales the gradients differently.
    """
    before = OmegaConf.create((checkpoint / "config.yaml").read_text(encoding="utf-8"))
    for name in ("algorithm", "pre_normalization"):
        old, new = OmegaConf.select(before, f"optimizer.{name}"), getattr(config.optimizer, name)
        if old != new:
            return f"{checkpoint} was trained with optimizer.{name}={old} and this run has {new}"
    return None


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix[:-1]: node}
    return {key: value for name, child in node.items() for key, value in _flat(child, f"{prefix}{name}.").items()}
