"""The options of ``bert_pretrain.study``: what a YAML under ``configs/study`` says, and the command line."""

import math
from dataclasses import dataclass, field

from bert_pretrain.data.masking import SPECIAL_TOKENS
from bert_pretrain.errors import ConfigError, require
from bert_pretrain.study.verdict import Claim


@dataclass
class LanguageConfig:
    """A language and how many samples of it. None is padded: every sample has ``sequence_length`` tokens."""

    samples: int
    heldout_samples: int
    sequence_length: int
    vocab_size: int
    """The five special tokens included."""
    topics: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("samples", "heldout_samples"):
            require(getattr(self, name) >= 1, f"corpus.{name}", getattr(self, name), "1 or more")
        require(self.sequence_length >= 8, "corpus.sequence_length", self.sequence_length, "8 or more")
        least = len(SPECIAL_TOKENS) + 2
        require(self.vocab_size >= least, "corpus.vocab_size", self.vocab_size, f"{least} or more")
        require(self.topics >= 2, "corpus.topics", self.topics, "2 or more")


@dataclass
class SpikeConfig:
    """A gradient out of scale: that of one update is multiplied by ``factor``."""

    step: int
    """Updates applied before it."""
    factor: float

    def __post_init__(self) -> None:
        require(self.step >= 1, "spike.step", self.step, "1 or more")
        require(0 < self.factor < math.inf, "spike.factor", self.factor, "a finite number above 0")


@dataclass
class ScaleConfig:
    """A study's numbers at one scale."""

    recipe: str
    """What every run starts from."""
    seeds: list[int]
    samples: int
    """Of every run; its steps follow from its batch."""
    note: str
    """What this scale can show, and what not."""
    options: list[str] = field(default_factory=list)
    """Of every run, over the recipe; the arm's options come over these."""
    arms: list[str] | None = None
    """Those that run at this scale; null: all."""
    learning_rates: dict[str, list[float]] = field(default_factory=dict)
    """For an arm, the peak rates that are tried with ``tuning_seed``; the best is run with ``seeds``."""
    tuning_seed: int = 0
    spikes: dict[str, SpikeConfig] = field(default_factory=dict)
    """The arms whose runs get one."""
    corpus: LanguageConfig | None = None
    """A corpus that the study makes itself, in ``out_dir/corpus``."""

    def __post_init__(self) -> None:
        distinct = len(self.seeds) == len(set(self.seeds)) >= 1 and self.tuning_seed not in self.seeds
        require(distinct, "seeds", self.seeds, f"one or more, each once, without the tuning seed ({self.tuning_seed})")


@dataclass
class StudyConfig:
    """Options of ``python -m bert_pretrain.study``."""

    name: str
    scale: str
    """One of the study's ``scales``: ``toy`` | ``base``."""
    out_dir: str
    """Runs, corpora, figure, page and data; started again, the study goes on from there."""
    device: str
    """``auto``, ``cpu`` or ``cuda``."""
    run_options: list[str]
    """Options of ``pretrain`` for every run, over all others; on the command line, all that are not the study's own."""
    question: str
    article: str
    """What the article found, in words."""
    arms: dict[str, list[str]]
    """What is compared: the options of each, over the scale's."""
    claims: list[Claim]
    scales: dict[str, ScaleConfig]

    def __post_init__(self) -> None:
        require(self.scale in self.scales, "scale", self.scale, " | ".join(self.scales))
        known = self.arms.keys()
        for name, scale in self.scales.items():
            for arm in (*(scale.arms or ()), *scale.learning_rates, *scale.spikes):
                require(arm in known, f"scales.{name}", arm, f"the arms {', '.join(known)}")
        for claim in self.claims:
            for arm in (claim.arm, claim.against):
                require(arm in known, "claims", arm, f"the arms {', '.join(known)}")
        if not self.chosen_arms:
            raise ConfigError(f"study {self.name} has no arms at scale {self.scale}")

    @property
    def chosen(self) -> ScaleConfig:
        """The numbers of ``scale``."""
        return self.scales[self.scale]

    @property
    def chosen_arms(self) -> list[str]:
        """The arms that run at ``scale``."""
        return list(self.arms) if self.chosen.arms is None else self.chosen.arms

    @property
    def chosen_claims(self) -> list[Claim]:
        """The claims whose arms both run at ``scale``."""
        return [claim for claim in self.claims if {claim.arm, claim.against} <= set(self.chosen_arms)]
