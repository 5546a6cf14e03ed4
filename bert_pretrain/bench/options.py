"""Options of the benchmarks."""

from dataclasses import dataclass

from bert_pretrain.config import PretrainConfig
from bert_pretrain.errors import require, require_choice, require_least
from bert_pretrain.options.config_files import choices


@dataclass
class BenchStepConfig(PretrainConfig):
    """Options of ``bert-pretrain bench step``: those of pretrain, and these."""

    rounds: int
    """Timed steps of each variant, interleaved with those of the others; the median counts."""
    transformers_trainer: bool | None
    """Also measure transformers.Trainer, separately; null: on one GPU if accelerate is installed."""
    out_dir: str
    """Directory for step.json and step.png."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(3, self, "rounds")


@dataclass
class BenchOptimizerConfig:
    """Options of ``bert-pretrain bench optimizer``."""

    device: str
    """auto, cpu or cuda."""
    models: list[str]
    """Models whose parameter shapes are used: base, large, tiny."""
    rounds: int
    """Blocks of steps per implementation, interleaved with those of the others; the median over all steps counts."""
    steps: int
    """Timed steps in a block, after one warm-up step."""
    busy: bool
    """Run a second process with matrix products on the same cores meanwhile."""
    out_dir: str
    """Directory for optimizer.json."""

    def __post_init__(self) -> None:
        for name in self.models:
            require_choice("models", name, choices("model", None))
        require(len(self.models) >= 1, "models", self.models, "one name or more")
        require_least(1, self, "rounds", "steps")
