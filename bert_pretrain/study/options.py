"""Options of ``bert-pretrain study``: the YAML of a study under ``configs/study``, and the command line."""

import math
from dataclasses import dataclass, field

from bert_pretrain.data.masking import SPECIAL_TOKENS
from bert_pretrain.errors import ConfigError, require, require_seed
from bert_pretrain.study.verdict import Claim


@dataclass
class LanguageConfig:
    """A synthetic language, and the number of samples. There is no padding."""

    samples: int
    """Training samples."""
    heldout_samples: int
    """Held-out samples."""
    sequence_length: int
    """Tokens in every sample."""
    vocab_size: int
    """Words, including the five special tokens."""
    topics: int
    """Topics, each with its own word frequencies."""
    seed: int
    """Seed of the language and of its samples."""

    def __post_init__(self) -> None:
        require_seed("corpus.seed", self.seed)
        words = len(SPECIAL_TOKENS) + 2
        least = {"samples": 1, "heldout_samples": 1, "sequence_length": 8, "vocab_size": words, "topics": 2}
        for name, number in least.items():
            require(getattr(self, name) >= number, f"corpus.{name}", getattr(self, name), f"{number} or more")


@dataclass
class SpikeConfig:
    """An artificial gradient spike: the gradient of one step is scaled."""

    step: int
    """Number of steps before the spike."""
    factor: float
    """Factor by which the gradient of that step is multiplied."""

    def __post_init__(self) -> None:
        require(self.step >= 1, "spike.step", self.step, "1 or more")
        require(0 < self.factor < math.inf, "spike.factor", self.factor, "a finite number above 0")


@dataclass
class ScaleConfig:
    """A study at one scale."""

    recipe: str
    """Recipe of every run."""
    seeds: list[int]
    """Each arm is run once per seed."""
    samples: int
    """Training samples of each run; the number of steps follows from the batch size."""
    note: str
    """What this scale can show and what it cannot."""
    options: list[str] = field(default_factory=list)
    """Options of every run, which override the recipe; those of the arm override these."""
    arms: list[str] | None = None
    """Arms to run at this scale; null: all."""
    learning_rates: dict[str, list[float]] = field(default_factory=dict)
    """By arm: peak learning rates to try with tuning_seed; the best is run with all seeds."""
    tuning_seed: int = 0
    """Seed of the runs that choose the learning rate."""
    spikes: dict[str, SpikeConfig] = field(default_factory=dict)
    """By arm: a gradient spike in each of its runs."""
    corpus: LanguageConfig | None = None
    """Synthetic corpus that the study writes to out_dir/corpus; null: none."""

    def __post_init__(self) -> None:
        for seed in (*self.seeds, self.tuning_seed):
            require_seed("seeds" if seed in self.seeds else "tuning_seed", seed)
        distinct = len(self.seeds) == len(set(self.seeds)) >= 1 and self.tuning_seed not in self.seeds
        require(distinct, "seeds", self.seeds, f"one or more, each once, without the tuning seed ({self.tuning_seed})")


@dataclass
class StudyConfig:
    """Options of ``bert-pretrain study``."""

    name: str
    """Name of the study."""
    scale: str
    """toy (tiny model, synthetic language, CPU) or base (BERT-base on one GPU, your shards)."""
    out_dir: str
    """Directory for the runs, the figure, the page and the numbers; an existing study continues."""
    device: str
    """auto, cpu or cuda."""
    run_options: list[str]
    """Options of pretrain for every run, which override all others; you may give them directly."""
    question: str
    """What is compared."""
    article: str
    """What the article found."""
    arms: dict[str, list[str]]
    """By arm: its options, which override those of the scale."""
    claims: list[Claim]
    """Comparisons of two arms, each with the article's result."""
    scales: dict[str, ScaleConfig]
    """The study at each scale."""

    def __post_init__(self) -> None:
        require(self.scale in self.scales, "scale", self.scale, " | ".join(self.scales))
        known, allowed = self.arms.keys(), f"the arms {', '.join(self.arms)}"
        for name, scale in self.scales.items():
            for arm in (*(scale.arms or ()), *scale.learning_rates, *scale.spikes):
                require(arm in known, f"scales.{name}", arm, allowed)
        for claim in self.claims:
            for arm in (claim.arm, claim.against):
                require(arm in known, "claims", arm, allowed)
        if not self.chosen_arms:
            raise ConfigError(f"study {self.name} has no arms at scale {self.scale}")

    @property
    def chosen(self) -> ScaleConfig:
        """The chosen scale."""
        return self.scales[self.scale]

    @property
    def chosen_arms(self) -> list[str]:
        """The arms that run at the chosen scale."""
        return list(self.arms) if self.chosen.arms is None else self.chosen.arms

    @property
    def chosen_claims(self) -> list[Claim]:
        """The claims of which both arms run at the chosen scale."""
        return [claim for claim in self.claims if {claim.arm, claim.against} <= set(self.chosen_arms)]
