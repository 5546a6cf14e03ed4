"""The options of a pretraining run."""

from dataclasses import dataclass, fields

from omegaconf import OmegaConf

from bert_pretrain.data.batch_plan import BatchConfig
from bert_pretrain.data.options import DataConfig
from bert_pretrain.distributed.options import DEVICES, CommunicationConfig
from bert_pretrain.errors import ConfigError, require, require_choice, require_seed
from bert_pretrain.model.options import ModelConfig, PrecisionConfig, SpeedConfig
from bert_pretrain.optim.options import OptimizerConfig, ScheduleConfig
from bert_pretrain.options.stored_options import FORMAT_VERSION
from bert_pretrain.training.options import CheckpointConfig, LoggingConfig, NumericsConfig, TrainingConfig

POSITIONS = ("interpolate", "repeat")


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
    init_progress: str
    """With ``init_from``: ``reset`` begins at step 0 with the first sample; ``keep`` goes on from the step and the
    position in the data of a checkpoint, a branch of its run in which only the rest of the schedule may differ."""
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
        require_seed("seed", self.seed)
        for name, allowed in (("init_moments", ("keep", "restart", "reset")), ("init_positions", POSITIONS)):
            require_choice(name, getattr(self, name), (*allowed, None))
        require_choice("init_progress", self.init_progress, ("keep", "reset"))
        if self.init_progress == "keep" and (self.init_from is None or self.init_moments not in ("keep", None)):
            raise ConfigError(
                f"init_progress is 'keep' with init_from={self.init_from} and init_moments={self.init_moments}; "
                "allowed: with init_from=CHECKPOINT and init_moments=keep"
            )
        for name in ("init_moments", "init_positions"):
            value = getattr(self, name)
            require(value is None or self.init_from is not None, name, value, "null without init_from")
        require_choice("device", self.device, DEVICES)
        first = (self.logging.profile_steps or [1])[0]
        total = self.schedule.total_steps
        require(first <= total, "logging.profile_steps", first, f"steps up to schedule.total_steps ({total})")
        pairs = self.model.next_sentence and self.data.kind != "shards"
        reason = f"false with data.kind={self.data.kind}, which has no pairs (for those: bert-pretrain prepare)"
        require(not pairs, "model.next_sentence", self.model.next_sentence, reason)
        length = self.data.sequence_length
        limit = self.model.max_position_embeddings
        fits = limit is None or length <= limit
        require(fits, "data.sequence_length", length, f"up to model.max_position_embeddings ({limit})")


def resolved_yaml(config: PretrainConfig) -> str:
    """The options of a run as YAML, without those that other commands add (plan, bench)."""
    run = PretrainConfig(**{field.name: getattr(config, field.name) for field in fields(PretrainConfig)})
    return f"format_version: {FORMAT_VERSION}\n{OmegaConf.to_yaml(OmegaConf.structured(run))}"
