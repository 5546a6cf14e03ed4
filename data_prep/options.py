"""The options of a preparation, and what follows from them alone."""

from dataclasses import dataclass

from bert_pretrain.errors import ConfigError, require

SHORTEST_SEQUENCE = 16


SMALLEST_VOCAB = 128


CORPUS_KINDS = ("embedded", "text", "jsonl", "parquet", "wikipedia", "dataset")


SAMPLE_KINDS = ("pair", "single")


BOUNDARIES = ("blank_line", "file")


LINES = ("wrapped", "paragraph", "sentence")


NORMAL_FORMS = ("NFC", "NFKC", "none")


@dataclass
class CleaningConfig:
    """The rules of ``configs/cleaning/``, where each is explained; :mod:`data_prep.sources.cleaning` applies them."""

    unicode: str
    prose_only: bool
    min_words: int
    max_symbol_share: float
    max_digit_share: float
    drop_boilerplate: bool
    min_document_words: int
    language_filter: bool

    def __post_init__(self) -> None:
        require(self.unicode in NORMAL_FORMS, "corpus.cleaning.unicode", self.unicode, ", ".join(NORMAL_FORMS))
        for name in ("max_symbol_share", "max_digit_share"):
            share = getattr(self, name)
            require(0 <= share <= 1, f"corpus.cleaning.{name}", share, "0 to 1")
        for name in ("min_words", "min_document_words"):
            count = getattr(self, name)
            require(count >= 0, f"corpus.cleaning.{name}", count, "0 or more")


@dataclass
class CorpusConfig:
    """One corpus. ``kind`` chooses the reader; the choices in ``configs/corpus/`` set and explain the rest."""

    kind: str
    path: str | None  # a file, a directory (searched with its sub-directories) or a glob pattern; a data set's name
    documents: str  # text: what ends a document, "blank_line" or "file"
    lines: str  # text: what a line is, part of a "wrapped" paragraph, a whole "paragraph", or a "sentence"
    text_field: str  # jsonl, parquet, dataset: the field that holds a document's text
    subset: str | None  # dataset: the configuration's name, such as 20231101.en
    split: str  # dataset: train, ...
    language: str  # for the sentence splitter and the language filter, ISO 639-1
    licence: str | None  # of your text; recorded in the manifest
    weight: float  # how often its documents count, beside those of other corpora
    drop_repeated_sentences: bool
    cleaning: CleaningConfig

    def __post_init__(self) -> None:
        require(self.kind in CORPUS_KINDS, "corpus.kind", self.kind, ", ".join(CORPUS_KINDS))
        require(self.documents in BOUNDARIES, "corpus.documents", self.documents, ", ".join(BOUNDARIES))
        require(self.lines in LINES, "corpus.lines", self.lines, ", ".join(LINES))
        require(0 < self.weight <= 1000, "corpus.weight", self.weight, "above 0, to 1000")
        if self.kind != "embedded" and not self.path:
            raise ConfigError(
                f"corpus.path is not set; corpus={self.kind} needs a file, a directory, a glob pattern, or, for "
                "corpus=dataset, the name of a data set; for example corpus.path=texts/"
            )


@dataclass
class DuplicateConfig:
    """The options of the group ``duplicates`` in ``configs/prepare.yaml``."""

    exact: bool
    near: bool
    similarity: float

    def __post_init__(self) -> None:
        require(0.5 <= self.similarity <= 1, "duplicates.similarity", self.similarity, "0.5 to 1")


@dataclass
class EngineConfig:
    """The options of the group ``engine`` in ``configs/prepare.yaml``. None of them changes the result."""

    workers: int | None
    scheduler: str | None
    worker_memory_gb: float
    dashboard: str

    def __post_init__(self) -> None:
        require(self.workers is None or self.workers >= 1, "engine.workers", self.workers, "null, or 1 or more")
        require(self.worker_memory_gb >= 0.5, "engine.worker_memory_gb", self.worker_memory_gb, "0.5 or more")
        known = self.scheduler is None or "://" in self.scheduler
        require(known, "engine.scheduler", self.scheduler, "null, or an address such as tcp://host:8786")


@dataclass(frozen=True)
class SampleOptions:
    """What the samples depend on, apart from the text."""

    kind: str
    sequence_lengths: tuple[int, ...]
    max_predictions: tuple[int, ...]
    masked_lm_prob: float
    short_seq_prob: float
    dupe_factor: int
    whole_word_masking: bool
    samples_per_shard: int
    heldout_fraction: float
    seed: int


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
        require(self.sample_kind in SAMPLE_KINDS, "sample_kind", self.sample_kind, ", ".join(SAMPLE_KINDS))
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


@dataclass
class ShowConfig:
    """The options of ``configs/show.yaml``."""

    corpus: CorpusConfig
    documents: int
    sentences: int | None
    seed: int

    def __post_init__(self) -> None:
        require(self.documents >= 1, "documents", self.documents, "1 or more")
        require(self.sentences is None or self.sentences >= 1, "sentences", self.sentences, "null, or 1 or more")


@dataclass
class VerifyConfig:
    """The options of ``configs/verify.yaml``."""

    dir: str
    samples: int
    vocab: str | None
    lowercase: bool

    def __post_init__(self) -> None:
        require(self.samples >= 0, "samples", self.samples, "0 or more")


@dataclass
class DataReportConfig:
    """The options of ``configs/data_report.yaml``."""

    dir: str
    samples: int
    vocab: str | None
    lowercase: bool

    def __post_init__(self) -> None:
        require(self.samples >= 0, "samples", self.samples, "0 or more")
