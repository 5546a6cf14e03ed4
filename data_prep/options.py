"""The options of the commands of ``data_prep``. The string below a field is its meaning in ``--help``."""

from dataclasses import dataclass

from bert_pretrain.data.shard_cache import CacheConfig
from bert_pretrain.errors import ConfigError, require, require_choice, require_seed

SHORTEST_SEQUENCE = 16
SMALLEST_VOCAB = 128
CORPUS_KINDS = ("embedded", "text", "jsonl", "csv", "parquet", "wikipedia", "dataset")
SAMPLE_KINDS = ("pair", "single")
BOUNDARIES = ("blank_line", "file", "line")
LINES = ("wrapped", "paragraph", "sentence")
NORMAL_FORMS = ("NFC", "NFKC", "none")


@dataclass
class CleaningConfig:
    """The rules of :mod:`data_prep.sources.cleaning`. A dropped paragraph is counted under the first rule it breaks."""

    unicode: str
    """Unicode normal form of the text: NFC, NFKC or none. Unless none, invisible and control characters are removed."""
    prose_only: bool
    """Drop paragraphs that are not prose: tables, lines of dots or dashes, text without letters, and what min_words,
    max_digit_share and max_symbol_share say."""
    min_words: int
    """Drop headings and labels: paragraphs of fewer words that end without a full stop, question or exclamation mark.
    In scripts without spaces, such as Chinese and Thai, two letters count as a word."""
    max_symbol_share: float
    """Drop paragraphs with a larger share of symbols (neither letter nor digit) among the visible characters."""
    max_digit_share: float
    """Drop paragraphs with a larger share of digits among the visible characters."""
    drop_boilerplate: bool
    """Drop paragraphs under 400 characters with English phrases such as "all rights reserved" or "privacy policy"."""
    min_document_words: int
    """Drop documents of fewer words."""
    language_filter: bool
    """Drop documents in another language than corpus.language, by py3langid on their first 2,000 characters."""

    def __post_init__(self) -> None:
        require_choice("corpus.cleaning.unicode", self.unicode, NORMAL_FORMS)
        for name in ("max_symbol_share", "max_digit_share"):
            share = getattr(self, name)
            require(0 <= share <= 1, f"corpus.cleaning.{name}", share, "0 to 1")
        for name in ("min_words", "min_document_words"):
            count = getattr(self, name)
            require(count >= 0, f"corpus.cleaning.{name}", count, "0 or more")


@dataclass
class CorpusConfig:
    """One corpus. The files in ``configs/corpus/`` set the options for each kind."""

    kind: str
    """The reader, set by corpus=NAME: text, jsonl, csv, parquet, wikipedia (XML dump), dataset (of the datasets
    library) or embedded (documentation of Python and of the installed packages)."""
    path: str | None
    """A file, a directory (searched recursively) or a glob pattern. Of corpus=dataset, a name on the Hugging Face hub
    or a folder that save_to_disk wrote. Not used by corpus=embedded."""
    documents: str
    """What ends a document of corpus=text: blank_line, file or line (every line is a document)."""
    lines: str
    """What a line of corpus=text is: paragraph, wrapped (a paragraph continues up to the next blank line) or sentence
    (not split again)."""
    text_field: str
    """Field that holds a document's text in corpus=jsonl, csv, parquet and dataset. Each line of it, or each text of a
    list, is a paragraph. A dot leads into a nested field (doc.text), a plus joins several (title+doc.text)."""
    bad_rows: float
    """Largest share of rows, in any part of a file, that may be broken, lack the field or hold something else than
    text. Up to it, they are counted and left out; rows whose text is null or empty are left out in any case."""
    subset: str | None
    """Configuration name of corpus=dataset, such as 20231101.en; null: the data set's default."""
    split: str
    """Split of corpus=dataset."""
    language: str
    """ISO 639-1 code, for the sentence splitter and corpus.cleaning.language_filter."""
    licence: str | None
    """Licence of the text, recorded in manifest.json. corpus=embedded records each package's own."""
    weight: float
    """Multiplies dupe_factor for this corpus: sets its share among the corpora of mix."""
    rule: str | None
    """A rule of your own, as FILE.py:FUNCTION. The function gets the text of a document, a paragraph a line, before
    cleaning; it returns the text to use, None to drop the document, or (None, "reason")."""
    drop_repeated_sentences: bool
    """Drop every sentence that occurred before, in this or an earlier document (equal but for case)."""
    cleaning: CleaningConfig

    def __post_init__(self) -> None:
        require_choice("corpus.kind", self.kind, CORPUS_KINDS)
        require_choice("corpus.documents", self.documents, BOUNDARIES)
        require_choice("corpus.lines", self.lines, LINES)
        known = self.language.isascii() and self.language.islower() and 2 <= len(self.language) <= 3
        require(known, "corpus.language", self.language, "an ISO 639 code of two or three letters: en, de, zh, fil")
        for name, only in (("documents", "file"), ("lines", "paragraph")):
            value, allowed = getattr(self, name), f"{only} with corpus={self.kind}; other values are for corpus=text"
            require(self.kind == "text" or value == only, f"corpus.{name}", value, allowed)
        require(0 <= self.bad_rows < 1, "corpus.bad_rows", self.bad_rows, "0 or more and below 1")
        require(0 < self.weight <= 1000, "corpus.weight", self.weight, "above 0, to 1000")
        if self.kind != "embedded" and not self.path:
            raise ConfigError(
                f"corpus.path is not set; corpus={self.kind} needs a file, a directory, a glob pattern, or, for "
                "corpus=dataset, the name of a data set; for example corpus.path=texts/"
            )


@dataclass
class DuplicateConfig:
    """Duplicates among the documents of all corpora. The first of them is kept."""

    exact: bool
    """Drop documents with equal text, ignoring case."""
    near: bool
    """Drop near duplicates, found by MinHash of word 5-grams; of letters' 5-grams in scripts without spaces."""
    similarity: float
    """Jaccard similarity of the sets of word 5-grams from which two documents are near duplicates, 0.5 to 1."""

    def __post_init__(self) -> None:
        require(0.5 <= self.similarity <= 1, "duplicates.similarity", self.similarity, "0.5 to 1")


@dataclass
class EngineConfig:
    """Where a preparation runs. None of these options changes the result."""

    workers: int | None
    """Worker processes on this machine; null: one a core; 1: run in the command's own process."""
    scheduler: str | None
    """Address of your own dask cluster, such as tcp://HOST:8786; its workers need the same files at the same paths.
    null: workers on this machine."""
    worker_memory_gb: float
    """Memory limit of a worker on this machine in GB. dask restarts a worker above it and runs its task again."""
    dashboard: str
    """Address of dask's dashboard; port 0: any free port."""

    def __post_init__(self) -> None:
        require(self.workers is None or self.workers >= 1, "engine.workers", self.workers, "null, or 1 or more")
        require(self.worker_memory_gb >= 0.5, "engine.worker_memory_gb", self.worker_memory_gb, "0.5 or more")
        known = self.scheduler is None or "://" in self.scheduler
        require(known, "engine.scheduler", self.scheduler, "null, or an address such as tcp://host:8786")


@dataclass
class PrepareConfig:
    """The options of ``bert-pretrain prepare``."""

    out_dir: str
    """Output directory, for train_*.hdf5, heldout_*.hdf5, manifest.json, tokenizer/ and the intermediate corpus/."""
    append: bool
    """Add the documents of the given corpora to the finished shards in out_dir, but for those that it holds already.
    The tokenizer stays; the other options must be those that the shards were made with."""
    corpus: CorpusConfig
    mix: dict[str, CorpusConfig]
    duplicates: DuplicateConfig
    vocab: str | None
    """The tokenizer of an existing model: its folder, its name on the hub, or a vocab.txt; null: train one. The ids are
    those of AutoTokenizer, and its files are copied beside the shards."""
    vocab_add: str | None
    """A file with a word a line, which are added to vocab behind its ids."""
    vocab_add_count: int | None
    """How many words to add to vocab besides: those that save the most pieces of this corpus. They are listed in
    tokenizer/added_words.tsv."""
    vocab_size: int
    """Entries of the vocabulary to train, 128 or more. Not used with vocab."""
    vocab_text_mb: float
    """Megabytes of text to train the vocabulary on; of a larger corpus, a random sample of the documents."""
    alphabet_coverage: float
    """Share of the characters of the text whose letters get entries in the vocabulary to train, 0.9 to 1; the rarest
    others become [UNK]. The 1,000 most frequent letters always get one."""
    lowercase: bool
    """Lowercase the text (uncased BERT). Not used where vocab is a folder with tokenizer.json or tokenizer_config.json,
    which state it."""
    strip_accents: bool | None
    """Replace letters with accents and other marks by those without. null: if lowercase is true and most letters of the
    text are Latin; with a vocab.txt, if lowercase is true. Not used where vocab states it."""
    sequence_lengths: list[int]
    """Tokens of a sample, 16 to 65535. With several, such as [128,512], the text is tokenised once, and the shards of
    each length are written to out_dir/LENGTH."""
    max_predictions: list[int] | None
    """Most masked tokens of a sample, one number for each sequence length; null: masked_lm_prob * length, rounded."""
    sample_kind: str
    """pair: two segments, for next-sentence prediction; single: one segment of whole sentences, label 0."""
    masked_lm_prob: float
    """Share of the tokens to mask, above 0 and below 1."""
    mask_share: float
    """Share of the masked tokens that become [MASK], 0 to 1."""
    random_share: float
    """Share of the masked tokens that become a random word, 0 to 1; the rest stays as it is."""
    short_seq_prob: float
    """Share of the documents whose samples get a random shorter length, 0 to 1."""
    dupe_factor: int
    """Copies of the corpus, with different pairs and masks, 1 to 1000. 1 is enough with data.masking=dynamic."""
    whole_word_masking: bool
    """Mask all WordPieces of a word together."""
    samples_per_shard: int
    """Samples of an HDF5 file."""
    heldout_fraction: float
    """Share of the documents for the eval split, chosen by a hash of their text; 0: no held-out shards."""
    seed: int
    """Seed of the samples, masks, shuffle and held-out documents, below 2^62."""
    piece_mb: float
    """Megabytes of text in one task of a worker, 0.001 to 64. Random next segments come from about twice as much."""
    keep_dropped: bool
    """Also write what the rules drop to out_dir/corpus/dropped/RULE.txt, to read. Does not change the shards."""
    engine: EngineConfig

    def __post_init__(self) -> None:
        lengths, most = self.sequence_lengths, self.max_predictions
        if self.vocab is None:
            require(self.vocab_size >= SMALLEST_VOCAB, "vocab_size", self.vocab_size, f"{SMALLEST_VOCAB} or more")
            for name in ("vocab_add", "vocab_add_count"):
                value = getattr(self, name)
                require(value is None, name, value, "null without vocab, the tokenizer that words are added to")
        more = self.vocab_add_count
        require(more is None or 1 <= more <= 1_000_000, "vocab_add_count", more, "null, or 1 to 1000000")
        require(0.9 <= self.alphabet_coverage <= 1, "alphabet_coverage", self.alphabet_coverage, "0.9 to 1")
        require(self.vocab_text_mb > 0, "vocab_text_mb", self.vocab_text_mb, "above 0")
        fits = all(SHORTEST_SEQUENCE <= length < 1 << 16 for length in lengths)
        allowed = f"one or more different lengths, each {SHORTEST_SEQUENCE} to 65535"
        require(bool(lengths) and fits and len(set(lengths)) == len(lengths), "sequence_lengths", lengths, allowed)
        if most is not None:
            fits = len(most) == len(lengths) and all(1 <= m <= n for m, n in zip(most, lengths, strict=True))
            require(fits, "max_predictions", most, "null, or for each of sequence_lengths 1 to that length")
        require_choice("sample_kind", self.sample_kind, SAMPLE_KINDS)
        require(0 < self.masked_lm_prob < 1, "masked_lm_prob", self.masked_lm_prob, "above 0 and below 1")
        for name in ("mask_share", "random_share"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1")
        rest = f"up to 1 together with mask_share ({self.mask_share})"
        require(self.mask_share + self.random_share <= 1, "random_share", self.random_share, rest)
        require(0 <= self.short_seq_prob <= 1, "short_seq_prob", self.short_seq_prob, "0 to 1")
        require(1 <= self.dupe_factor <= 1000, "dupe_factor", self.dupe_factor, "1 to 1000")
        require(self.samples_per_shard >= 1, "samples_per_shard", self.samples_per_shard, "1 or more")
        require(0 <= self.heldout_fraction < 1, "heldout_fraction", self.heldout_fraction, "0 or more and below 1")
        require_seed("seed", self.seed)
        require(0.001 <= self.piece_mb <= 64, "piece_mb", self.piece_mb, "0.001 to 64")

    @property
    def corpora(self) -> dict[str, CorpusConfig]:
        """All corpora by name."""
        return {"corpus": self.corpus, **self.mix}

    @property
    def piece_bytes(self) -> int:
        """Bytes of text in one task of a worker."""
        return int(self.piece_mb * 1e6)

    @property
    def predictions(self) -> list[int]:
        """Most masked tokens of a sample, for each sequence length."""
        return self.max_predictions or [max(1, round(self.masked_lm_prob * n)) for n in self.sequence_lengths]


@dataclass
class ShowConfig:
    """The options of ``bert-pretrain show``."""

    corpus: CorpusConfig
    documents: int
    """Documents to print. At most as many pieces (1 MB) of the corpus are read."""
    sentences: int | None
    """Print only the first sentences of each document, this many; null: all."""
    seed: int
    """Seed of the random choice of documents."""

    def __post_init__(self) -> None:
        require(self.documents >= 1, "documents", self.documents, "1 or more")
        require_seed("seed", self.seed)
        require(self.sentences is None or self.sentences >= 1, "sentences", self.sentences, "null, or 1 or more")


@dataclass
class VerifyConfig(CacheConfig):
    """The options of ``bert-pretrain verify`` and ``bert-pretrain data-report``."""

    dir: str
    """Directory of the shards, or an address of one, such as s3://bucket/set."""
    samples: int
    """Decoded samples to show for each split."""
    vocab: str | None
    """A vocab.txt or tokenizer folder; null: the tokenizer/ folder beside the shards, if there is one."""
    lowercase: bool
    """Whether the vocab.txt of vocab is lowercase; a tokenizer.json states it itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.samples >= 0, "samples", self.samples, "0 or more")
