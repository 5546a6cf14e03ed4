"""Options of ``bert-pretrain study``: the YAML of a study under ``configs/study``, and the command line."""

import math
from dataclasses import dataclass, field

from bert_pretrain.data.masking_rule import SPECIAL_TOKENS
from bert_pretrain.errors import ConfigError, require, require_choice, require_least, require_seed
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
        least = {"samples": 1, "heldout_samples": 1, "sequence_length": 8, "topics": 2}
        for name, number in (least | {"vocab_size": len(SPECIAL_TOKENS) + 2}).items():
            require_least(number, self, name, prefix="corpus.")


@dataclass
class SpikeConfig:
    """An artificial gradient spike: the gradient of one step is scaled."""

    step: int
    """Number of steps before the spike."""
    factor: float
    """Factor by which the gradient of that step is multiplied."""

    def __post_init__(self) -> None:
        require_least(1, self, "step", prefix="spike.")
        require(0 < self.factor < math.inf, "spike.factor", self.factor, "a finite number above 0")


@dataclass
class TargetConfig:
    """A held-out loss, and the batch sizes of which the steps to it are compared."""

    loss: float
    """Held-out MLM loss in nats at which a run ends."""
    batch_sizes: list[int]
    """Batch sizes, ascending."""
    evaluate_every_samples: int
    """Samples between two evaluations on the held-out shards; at least one step."""
    baseline: str
    """The arm with whose samples those of the others are compared."""
    give_up_factor: float
    """A run of another arm is given up after so many times the steps of the baseline at this batch size."""
    largest_batch: dict[str, int] = field(default_factory=dict)
    """By arm: the largest of batch_sizes that it is run at, if not all."""

    def __post_init__(self) -> None:
        require(0 < self.loss < math.inf, "target.loss", self.loss, "a number above 0")
        sizes = self.batch_sizes
        ascending = len(sizes) > 0 and sizes == sorted(set(sizes)) and sizes[0] >= 1
        require(ascending, "target.batch_sizes", sizes, "one or more, ascending, each once")
        require_least(1, self, "evaluate_every_samples", prefix="target.")
        require(self.give_up_factor > 1, "target.give_up_factor", self.give_up_factor, "above 1")
        for arm, largest in self.largest_batch.items():
            allowed = f"one of target.batch_sizes {sizes}"
            require(largest in sizes and arm != self.baseline, f"target.largest_batch.{arm}", largest, allowed)

    def sizes_of(self, arm: str) -> list[int]:
        """The batch sizes that ``arm`` is run at."""
        return [size for size in self.batch_sizes if size <= self.largest_batch.get(arm, size)]


@dataclass
class ScaleConfig:
    """A study at one scale."""

    recipe: str
    """Recipe of every run."""
    seeds: list[int]
    """Each arm is run once per seed."""
    samples: int
    """Training samples of each run; the number of steps follows from the batch size. With a target: at most."""
    note: str
    """What this scale can show and what it cannot."""
    options: list[str] = field(default_factory=list)
    """Options of every run, which override the recipe; those of the arm override these."""
    arms: list[str] | None = None
    """Arms to run at this scale; null: all."""
    arm_options: dict[str, list[str]] = field(default_factory=dict)
    """By arm: its options at this scale, which override those that it has at all scales."""
    learning_rates: dict[str, list[float]] = field(default_factory=dict)
    """By arm: peak learning rates to try with tuning_seed, and more of them until the best is not the highest or the
    lowest (bert_pretrain/study/search.py); the best is run with all seeds. A single one is not tuned, unless there is
    a target."""
    tuning_seed: int = 0
    """Seed of the runs that choose the learning rate."""
    spikes: dict[str, SpikeConfig] = field(default_factory=dict)
    """By arm: a gradient spike in each of its runs."""
    target: TargetConfig | None = None
    """Runs end at a held-out loss, and the study compares the steps to it over batch sizes; null: runs end after
    samples, and the study compares their last losses."""
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
    """toy (tiny model, synthetic language, CPU), small (small model, your shards, CPU) or base (BERT-base on one GPU,
    your shards)."""
    out_dir: str
    """Directory for the runs, the figure, the page and the numbers; an existing study continues."""
    device: str
    """auto, cpu or cuda."""
    run_options: list[str]
    """Options of pretrain for every run, which override all others; you may give them directly."""
    question: str
    """What is compared."""
    arms: dict[str, list[str]]
    """By arm: its options, which override those of the scale."""
    claims: list[Claim]
    """Comparisons of two arms, each with what a source says about it. With a target: of the samples to it, at the
    largest batch size that both are run at."""
    scales: dict[str, ScaleConfig]
    """The study at each scale."""

    def __post_init__(self) -> None:
        require_choice("scale", self.scale, self.scales)
        for name, scale in self.scales.items():
            for arm in (*(scale.arms or ()), *scale.arm_options, *scale.learning_rates, *scale.spikes):
                require_choice(f"scales.{name}", arm, self.arms)
        for claim in self.claims:
            for arm in (claim.arm, claim.against):
                require_choice("claims", arm, self.arms)
        self._check_target()
        if not self.chosen_arms:
            raise ConfigError(f"study {self.name} has no arms at scale {self.scale}")

    def _check_target(self) -> None:
        """The baseline is among the arms, and every arm has a learning rate to begin with."""
        target = self.chosen.target
        if target is None:
            return
        require_choice(f"scales.{self.scale}.target.baseline", target.baseline, self.chosen_arms)
        for arm in target.largest_batch:
            require_choice(f"scales.{self.scale}.target.largest_batch", arm, self.arms)
        for arm in self.chosen_arms:
            rates = self.chosen.learning_rates.get(arm)
            require(bool(rates), f"scales.{self.scale}.learning_rates.{arm}", rates, "one or more to begin with")

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
