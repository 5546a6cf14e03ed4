"""The options of a preparation, and what follows from them alone."""

from dataclasses import dataclass

from bert_pretrain.errors import require
from data_prep.corpus import CorpusConfig
from data_prep.engine.local import EngineConfig
from data_prep.samples.pairs import KINDS, SampleOptions
from data_prep.samples.tokenizer import SMALLEST_VOCAB
from data_prep.text.duplicates import DuplicateConfig

SHORTEST_SEQUENCE = 16
_PIECES_PER_BUCKET = 2
_DOCUMENTS_PER_BUCKET = 32  # on average at least, so that random next segments have many documents to come from


@dataclass
class PrepareConfig:
    """The options of ``configs/prepare.yaml``, where each is explained."""

    out_dir: str
    corpus: CorpusConfig
    mix: dict[str, CorpusConfig]
    duplicates: DuplicateConfig
    vocab: str | None
    vocab_size: int
    vocab_text_mb: float
    lowercase: bool
    sequence_lengths: list[int]
    max_predictions: list[int] | None
    sample_kind: str
    masked_lm_prob: float
    short_seq_prob: float
    dupe_factor: int
    whole_word_masking: bool
    samples_per_shard: int
    heldout_fraction: float
    seed: int
    piece_mb: float
    engine: EngineConfig

    def __post_init__(self) -> None:
        lengths, most = self.sequence_lengths, self.max_predictions
        if self.vocab is None:
            require(self.vocab_size >= SMALLEST_VOCAB, "vocab_size", self.vocab_size, f"{SMALLEST_VOCAB} or more")
        require(self.vocab_text_mb > 0, "vocab_text_mb", self.vocab_text_mb, "above 0")
        fits = all(SHORTEST_SEQUENCE <= length < 1 << 16 for length in lengths)
        allowed = f"one length or more, each once, each {SHORTEST_SEQUENCE} to 65535"
        require(bool(lengths) and fits and len(set(lengths)) == len(lengths), "sequence_lengths", lengths, allowed)
        if most is not None:
            fits = len(most) == len(lengths) and all(1 <= m <= n for m, n in zip(most, lengths, strict=True))
            require(fits, "max_predictions", most, "null, or for each of sequence_lengths 1 to that length")
        require(self.sample_kind in KINDS, "sample_kind", self.sample_kind, ", ".join(KINDS))
        require(0 < self.masked_lm_prob < 1, "masked_lm_prob", self.masked_lm_prob, "above 0 and below 1")
        require(0 <= self.short_seq_prob <= 1, "short_seq_prob", self.short_seq_prob, "0 to 1")
        require(1 <= self.dupe_factor <= 1000, "dupe_factor", self.dupe_factor, "1 to 1000")
        require(self.samples_per_shard >= 1, "samples_per_shard", self.samples_per_shard, "1 or more")
        require(0 <= self.heldout_fraction < 1, "heldout_fraction", self.heldout_fraction, "0 or more and below 1")
        require(0 <= self.seed < 1 << 62, "seed", self.seed, "0 or more and below 2^62")
        require(0.001 <= self.piece_mb <= 64, "piece_mb", self.piece_mb, "0.001 to 64")

    @property
    def corpora(self) -> dict[str, CorpusConfig]:
        """All corpora by name."""
        return {"corpus": self.corpus, **self.mix}

    @property
    def piece_bytes(self) -> int:
        """Text that a worker takes at a time."""
        return int(self.piece_mb * 1e6)


def sample_options(config: PrepareConfig) -> SampleOptions:
    """The options that samples depend on, with the most predictions of each length."""
    lengths = config.sequence_lengths
    most = config.max_predictions or [max(1, round(config.masked_lm_prob * length)) for length in lengths]
    return SampleOptions(
        kind=config.sample_kind,
        sequence_lengths=tuple(lengths),
        max_predictions=tuple(most),
        masked_lm_prob=config.masked_lm_prob,
        short_seq_prob=config.short_seq_prob,
        dupe_factor=config.dupe_factor,
        whole_word_masking=config.whole_word_masking,
        samples_per_shard=config.samples_per_shard,
        heldout_fraction=config.heldout_fraction,
        seed=config.seed,
    )


def bucket_counts(config: PrepareConfig, documents: int, characters: int) -> tuple[int, int]:
    """How many buckets the documents for training and those held out are shared out to."""
    weight = max(corpus.weight for corpus in config.corpora.values())
    size = _PIECES_PER_BUCKET * config.piece_bytes * min(1.0, 5 / (config.dupe_factor * weight))

    def count(share: float) -> int:
        wanted = -(-int(share * characters) // max(1, int(size)))
        return max(1, min(wanted, int(share * documents) // _DOCUMENTS_PER_BUCKET))

    heldout = config.heldout_fraction
    return count(1 - heldout), count(heldout) if heldout > 0 else 0
