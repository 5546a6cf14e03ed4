"""Options of the benchmarks."""

from dataclasses import dataclass

from bert_pretrain.config import PretrainConfig
from bert_pretrain.config_loading import CONFIG_DIR
from bert_pretrain.errors import require


@dataclass
class BenchStepConfig(PretrainConfig):
    """Options of ``python -m bert_pretrain.bench step``: those of pretrain, and how long to measure."""

    rounds: int
    """Steps of each variant, taken in turns; the median counts."""
    transformers_trainer: bool | None
    """Measure ``transformers.Trainer``, too, in a run of its own; null: on one GPU, where accelerate is installed."""
    out_dir: str
    """Where ``step.json`` and ``step.png`` go."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rounds >= 3, "rounds", self.rounds, "3 or more")


@dataclass
class BenchOptimizerConfig:
    """Options of ``python -m bert_pretrain.bench optimizer``."""

    device: str
    """``auto``, ``cpu`` or ``cuda``."""
    models: list[str]
    """Whose parameters: names of files in ``configs/model``."""
    rounds: int
    """Blocks of each implementation, taken in turns; the median step of all blocks counts."""
    steps: int
    """Timed steps in a block, after one that is not timed."""
    busy: bool
    """Run a second heavy process on the same cores meanwhile."""
    out_dir: str
    """Where ``optimizer.json`` goes."""

    def __post_init__(self) -> None:
        for name in self.models:
            known = sorted(path.stem for path in (CONFIG_DIR / "model").glob("*.yaml"))
            require(name in known, "models", name, ", ".join(known))
        require(len(self.models) >= 1, "models", self.models, "one name or more")
        require(self.rounds >= 1, "rounds", self.rounds, "1 or more")
        require(self.steps >= 1, "steps", self.steps, "1 or more")
