"""The options ``data.*`` of sets that are no shards: rows of token ids, and text that is tokenised while training."""

from dataclasses import dataclass, fields

from bert_pretrain.errors import require, require_choice

KINDS = ("shards", "pretokenised", "streamed")
COLUMNS = {"pretokenised": "input_ids", "streamed": "text"}


@dataclass(kw_only=True)
class ReadyMadeConfig:
    """Options ``data.*``; all but ``kind`` and ``whole_word_masking`` are for sets that are no shards."""

    kind: str = "shards"
    """``shards``, as `bert-pretrain prepare` writes them; ``pretokenised``: rows of token ids, of the datasets library
    (data=pretokenised); ``streamed``: rows of text, tokenised while training (data=streamed)."""
    subset: str | None = None
    """Name of the configuration of a data set on the hub, such as 20231101.en."""
    revision: str | None = None
    """Commit or branch of a data set on the hub; null: the newest."""
    split: str = "train"
    """The split to train on."""
    column: str | None = None
    """The column with the token ids, or with the text. null: input_ids, or text."""
    special_tokens: str = "auto"
    """Of rows of token ids: ``add`` puts [CLS] before and [SEP] behind each, ``stored`` takes them as they are,
    ``auto`` does the second if one of the first 1,000 rows has a [CLS] or [SEP]."""
    long_rows: str = "split"
    """Rows longer than ``sequence_length``: ``split`` into as many samples as needed, or ``cut`` after the first."""
    whole_word_masking: bool = False
    """With ``masking=dynamic``: mask whole words. false: with shards as they state, else single pieces."""
    heldout_split: str | None = "validation"
    """The split for evaluation, if the set has it; else, and with null, it is a share of the rows of ``split``."""
    heldout_fraction: float = 0.01
    """Share of the rows that are held out where there is no ``heldout_split``: every n-th row of each file, n =
    1 / heldout_fraction rounded to a whole number, so 0.4 holds out every second one. They are never trained on. 0:
    none."""
    heldout_samples: int | None = None
    """Samples for evaluation: the first of the held-out ones. null: all, with ``streamed`` the first 1,024."""
    shuffle_buffer: int = 16_384
    """With ``streamed``: samples that are held in memory, and shuffled together."""
    streams: int = 8
    """With ``streamed``: parts that the files are dealt into, each read on its own. A rank reads those of its samples
    only; 1 makes every rank read all. At most as many as there are files."""

    def check_ready_made(self, masking: str, masked_lm_prob: float | None) -> None:
        """Raise ``ConfigError`` for values that are not allowed; ``masking`` and the other: of ``data.*``."""
        require_choice("data.kind", self.kind, KINDS)
        require_choice("data.special_tokens", self.special_tokens, ("auto", "stored", "add"))
        require_choice("data.long_rows", self.long_rows, ("split", "cut"))
        share = self.heldout_fraction
        require(0 <= share <= 0.5, "data.heldout_fraction", share, "0 to 0.5")
        for name in ("heldout_samples", "shuffle_buffer", "streams"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"data.{name}", value, "1 or more")
        if self.kind == "shards":
            self._refuse_stated()
            allowed = "false with data.masking=static, whose masks are those of the shards"
            whole_words = self.whole_word_masking
            require(not whole_words or masking == "dynamic", "data.whole_word_masking", whole_words, allowed)
            return
        where = f"with data.kind={self.kind}, whose samples have no masks"
        require(masking == "dynamic", "data.masking", masking, f"dynamic {where}")
        require(masked_lm_prob is not None, "data.masked_lm_prob", masked_lm_prob, f"a number {where} (BERT: 0.15)")

    def _refuse_stated(self) -> None:
        """Raise ``ConfigError`` for an option that shards do not read."""
        for option in fields(ReadyMadeConfig):
            if option.name in READY_MADE_ONLY:
                default = "null" if option.default is None else option.default
                allowed = f"{default} with data.kind=shards (data=pretokenised and data=streamed read it)"
                value = getattr(self, option.name)
                require(value == option.default, f"data.{option.name}", value, allowed)

    @property
    def rows_column(self) -> str:
        """The column that is read."""
        return self.column or COLUMNS[self.kind]

    @property
    def heldout_stride(self) -> int:
        """n, if every n-th row of a split without a held-out one is held out; 0: none is."""
        return round(1 / self.heldout_fraction) if self.heldout_fraction else 0


READY_MADE_ONLY = tuple(
    option.name for option in fields(ReadyMadeConfig) if option.name not in ("kind", "whole_word_masking")
)
"""The options that shards do not read."""
