"""The options of a run's data."""

from dataclasses import dataclass, field
from math import inf

from bert_pretrain.data.ready_made_options import ReadyMadeConfig
from bert_pretrain.data.shard_cache import CacheConfig
from bert_pretrain.errors import require, require_choice


@dataclass
class DataConfig(ReadyMadeConfig, CacheConfig):
    """Options ``data.*``."""

    dir: str
    """Directory with the shards, as written by `bert-pretrain prepare` or in NVIDIA's published layout; or the address
    of one that prepare wrote, such as s3://bucket/set. With another ``kind``: a folder that the datasets library reads,
    or hf://OWNER/NAME for a data set on the hub."""
    tokenizer: str
    """The tokenizer's folder; with another ``kind`` than shards also its name on the hub. It is copied into every
    checkpoint."""
    sequence_length: int
    """Tokens per sample in the shards (L). It must be stated, so that phase 2 cannot run on the shards of phase 1."""
    masking: str
    """``static``: the masks in the shards; ``dynamic``: new masks in every epoch."""
    masked_lm_prob: float | None
    """With ``masking=dynamic``: share of tokens to predict; null: as in the shards. A sample gets at most as many as
    the shards have room for (max_predictions). With ``masking=static`` it has no effect, which the run says."""
    mask_share: float | None
    """With ``masking=dynamic``: share of the predicted tokens that are replaced by [MASK]; null: as in the shards, 0.8
    unless they state another."""
    random_share: float | None
    """With ``masking=dynamic``: share of the predicted tokens that are replaced by a random word; null: as in the
    shards, 0.1 unless they state another. The rest stays as it is."""
    check: str
    """Check of the training shards before the first step. ``content`` reads all ids and compares checksums, ``headers``
    reads names, shapes and headers only, ``auto`` is ``content`` up to 4 GiB of shards."""
    block_size: int
    """Samples per read. The order of an epoch is a permutation of blocks, and of the samples in each block."""
    window: int | None
    """Samples that an epoch shuffles together; null: all. With a window, an epoch visits the shards part by part, each
    epoch in another order, and a cache of remote shards need hold only two windows. For shards only."""
    prefetch: int
    """Micro-batches to prepare in advance."""
    mix: dict[str, str] = field(default_factory=dict)
    """Directory of a further set of shards, with a NAME of your choice: the same tokenizer and lengths. The order
    of the sets is part of a run, which keeps the one that it began with."""
    mix_weights: dict[str, float] = field(default_factory=dict)
    """Multiplies the share of the set NAME, or of data.dir with NAME dir; 1 where none is given."""
    mix_temperature: float = field(default=1.0, metadata={"endless": True})
    """T: the share of a set of size n is proportional to weight * n^(1/T). 1: by size; inf: by weight alone."""
    mix_by: str = "samples"
    """What sizes and shares of the mixture count: ``samples`` or ``tokens``, without padding."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.sequence_length >= 8, "data.sequence_length", self.sequence_length, "8 or more")
        require_choice("data.masking", self.masking, ("static", "dynamic"))
        share = self.masked_lm_prob
        require(share is None or 0.0 < share < 1.0, "data.masked_lm_prob", share, "null, or between 0 and 1")
        for name in ("mask_share", "random_share"):
            share = getattr(self, name)
            require(share is None or 0.0 <= share <= 1.0, f"data.{name}", share, "null, or 0 to 1")
            allowed = "null with data.masking=static, whose masks are those of the shards"
            require(share is None or self.masking == "dynamic", f"data.{name}", share, allowed)
        self.check_ready_made(self.masking, self.masked_lm_prob)
        require_choice("data.check", self.check, ("auto", "content", "headers"))
        require(self.block_size >= 1, "data.block_size", self.block_size, "1 or more")
        window = self.window
        allowed = f"null, or data.block_size ({self.block_size}) or more"
        require(window is None or window >= self.block_size, "data.window", window, allowed)
        allowed = f"null with data.kind={self.kind}: only shards are shuffled by windows"
        require(window is None or self.kind == "shards", "data.window", window, allowed)
        require(1 <= self.prefetch <= 10_000, "data.prefetch", self.prefetch, "1 to 10,000")
        require(self.mix_temperature >= 0.001, "data.mix_temperature", self.mix_temperature, "0.001 or more, or inf")
        require_choice("data.mix_by", self.mix_by, ("samples", "tokens"))
        allowed = "empty, as sets are mixed with data.kind=shards only"
        require(not self.mix or self.kind == "shards", "data.mix", list(self.mix), allowed)
        require("dir" not in self.mix, "data.mix.dir", self.mix.get("dir"), "another name")
        for name, weight in self.mix_weights.items():
            known = ", ".join(("dir", *self.mix))
            require(name in self.mix or name == "dir", "data.mix_weights", name, f"the names of the sets: {known}")
            require(0 < weight < inf, f"data.mix_weights.{name}", weight, "a number above 0")
