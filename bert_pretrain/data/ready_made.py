"""Opens sets that are no shards: training and held-out samples of rows of token ids, or of text."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bert_pretrain.data.dataset import SampleSet, check_size
from bert_pretrain.data.dynamic_masking import masked_by, stated_shares
from bert_pretrain.data.masking import DynamicMasking
from bert_pretrain.data.masking_rule import MaskingRule
from bert_pretrain.data.options import DataConfig
from bert_pretrain.data.pretokenised import TokenRows, TokenSamples, scan, stores_special_tokens
from bert_pretrain.data.row_source import (
    RowSource,
    TextFiles,
    check_address,
    fingerprint,
    local_tokenizer,
    once,
    open_source,
)
from bert_pretrain.data.samples import MaskedSamples, RowCutter, is_held_out, unmasked
from bert_pretrain.data.shards import Arrays
from bert_pretrain.data.text_stream import Stream, StreamReader
from bert_pretrain.data.tokenizer_files import TokenTable, masking_rule, read_tokenizer
from bert_pretrain.errors import ConfigError

_SMALL = 4 << 30  # bytes of ids that data.check=auto reads
_HELDOUT_SEED = 0  # so that runs with other seeds are evaluated on the same masks
_HELDOUT_SAMPLES = 1024  # of text
_NOTHING_HELD_OUT = "no rows are held out: there will be no evaluation (data.heldout_split, data.heldout_fraction)"

Report = Callable[[str], None]


class Opened(NamedTuple):
    """The samples of a run."""

    train: SampleSet | StreamReader
    heldout: SampleSet | None
    masking: DynamicMasking | None
    """Of the training samples; None where they are read with their masks."""


def open_ready_made(config: DataConfig, vocab_size: int, batch: int, seed: int, report: Report) -> Opened:
    """Open a set that is no shards.

    ``vocab_size``: the model's; ``batch``: samples of a global batch. Raises ``ConfigError``.
    """
    check_address(config.dir)
    folder = local_tokenizer(config.tokenizer)
    table = read_tokenizer(folder)
    check_size(table, config.tokenizer, vocab_size)
    probability = config.masked_lm_prob or 0.0  # DataConfig has checked that there is one
    most = max(1, round(probability * config.sequence_length))
    rule = masking_rule(table, probability, most, config.whole_word_masking, vocab_size, folder)
    rule = replace(rule, **stated_shares(config))
    source, heldout = open_source(config, config.dir), config.heldout_split
    if heldout == config.split or heldout not in source.splits:
        heldout = None
    opening = _Opening(config, source, heldout, table, rule, seed, report)
    return opening.tokens() if config.kind == "pretokenised" else opening.text(folder, batch)


@dataclass(frozen=True)
class _Opening:
    """What both kinds of sets are opened with."""

    config: DataConfig
    source: RowSource
    heldout: str | None
    """The split for evaluation; None: every ``stride``-th row of the other."""
    table: TokenTable
    rule: MaskingRule
    seed: int
    report: Report

    @property
    def stride(self) -> int:
        """Every so many rows of the training split one is held out; 0: none is."""
        return self.config.heldout_stride if self.heldout is None else 0

    def _cutter(self, adds: bool) -> RowCutter:
        """``masking_rule`` has checked that all special tokens are there."""
        cls, sep, pad = (self.table.roles[role] for role in ("cls", "sep", "pad"))
        return RowCutter(self.config.sequence_length, cls, sep, pad, adds, self.config.long_rows == "split")

    def tokens(self) -> Opened:
        """A set of rows of token ids."""
        config = self.config
        rows = TokenRows(self.source, config.split, config)
        train, held = self._token_samples(rows, self.stride)
        if train is None:
            raise ConfigError(f"{rows.where}: all {rows.count} rows are empty or held out")
        if self.heldout is not None:
            held, _ = self._token_samples(TokenRows(self.source, self.heldout, config), 0)
        if held is None:
            self.report(_NOTHING_HELD_OUT)
        else:
            held.samples = min(held.samples, config.heldout_samples or held.samples)
            held.masking = masked_by(self.rule, _HELDOUT_SEED)
        return Opened(train, held, masked_by(self.rule, self.seed))

    def _token_samples(self, rows: TokenRows, stride: int) -> tuple[TokenSamples | None, TokenSamples | None]:
        """The samples of ``rows``, and those of every ``stride``-th row; None where there are none."""
        config, table = self.config, self.table
        stored, padded = stores_special_tokens(rows, (table.roles["cls"], table.roles["sep"]), table.roles["pad"])
        cutter = self._cutter(adds=not stored if config.special_tokens == "auto" else config.special_tokens == "add")
        content = padded or config.check == "content" or (config.check == "auto" and rows.bytes <= _SMALL)
        lengths, pieces = scan(rows, cutter, len(table.tokens), content)
        is_held = is_held_out(np.arange(rows.count), stride)
        self.report(_describe(config, rows, cutter, lengths, pieces))
        if stride:
            self.report(f"held out: every {stride}th row, {pieces[is_held].sum():,} samples; they are never trained on")

        def samples(own: np.ndarray) -> TokenSamples | None:
            part = np.where(own, pieces, 0)
            if not part.any():
                return None
            return TokenSamples(rows, part, lengths, cutter, self.rule, len(table.tokens), table.vocab_hash)

        return samples(~is_held), samples(is_held)

    def text(self, folder: Path, batch: int) -> Opened:
        """A set of text, tokenised by the tokenizer in ``folder``; ``batch``: samples of a global batch."""
        config, rule, stride = self.config, self.rule, self.stride
        cutter = self._cutter(adds=True)
        tokenise = tokeniser(folder, cutter)
        text = TextFiles(self.source, config.split, config)
        count = min(config.streams, text.files, batch)
        per_stream = -(-config.shuffle_buffer // count)
        streams = [
            Stream(number, list(range(number, text.files, count)), text, tokenise, self.seed, per_stream, stride)
            for number in range(count)
        ]
        self.report(
            f"{text.where}: text of {text.files} files in {count} streams, tokenised while training; "
            f"{config.shuffle_buffer:,} samples are shuffled together. How many there are is not known: the run takes "
            "schedule.total_steps steps, and a stream at its end begins again, in another order"
        )

        def padded(samples: list[np.ndarray]) -> Arrays:
            return unmasked(samples, cutter.length, rule, cutter.pad)

        known = self.source.origin, config.split, config.rows_column, self.table.vocab_hash
        masking = masked_by(rule, self.seed)
        reader = StreamReader(streams, batch, padded, masking, rule.max_predictions, fingerprint(*known))
        if self.heldout is None and not stride:
            self.report(_NOTHING_HELD_OUT)
            return Opened(reader, None, None)
        held_text = text if self.heldout is None else TextFiles(self.source, self.heldout, config)
        samples = _first_samples(held_text, tokenise, stride, config.heldout_samples or _HELDOUT_SAMPLES)
        which = f"split {self.heldout}" if self.heldout else f"every {stride}th row of each file, never trained on"
        self.report(f"held out: {which}; evaluated on the first {len(samples):,} samples")
        if not samples:
            return Opened(reader, None, None)
        masked = masked_by(rule, _HELDOUT_SEED)(padded(samples), 0, np.arange(len(samples)))
        return Opened(reader, MaskedSamples(masked, reader.fingerprint), None)


def _describe(config: DataConfig, rows: TokenRows, cutter: RowCutter, lengths: np.ndarray, pieces: np.ndarray) -> str:
    long = int(np.count_nonzero(lengths > cutter.length - 2 * cutter.adds))
    empty = int(np.count_nonzero(pieces == 0))
    parts = [
        f"{rows.where}: {rows.count:,} rows, {pieces.sum():,} samples of up to {cutter.length} tokens, in random order",
        "[CLS] and [SEP] are added" if cutter.adds else "special tokens as stored",
        f"{long:,} longer rows are {config.long_rows}" if long else "",
        f"{empty:,} rows are empty" if empty else "",
        f"not read: {', '.join(rows.unread)}" if rows.unread else "",
    ]
    return "; ".join(filter(None, parts))


def _first_samples(
    text: TextFiles, tokenise: Callable[[list[str]], list[np.ndarray]], stride: int, most: int
) -> list[np.ndarray]:
    """The first ``most`` samples of the held-out rows: every ``stride``-th, or with 0 all."""
    found: list[np.ndarray] = []
    for file in range(text.files):
        for rows, texts in text.read(file):
            held = is_held_out(rows, stride) if stride else np.ones(len(rows), np.bool_)
            found += tokenise([texts[place] for place in np.flatnonzero(held)])
            if len(found) >= most:
                return found[:most]
    return found


def tokeniser(folder: Path, cutter: RowCutter) -> Callable[[list[str]], list[np.ndarray]]:
    """Texts -> the ids of their samples, with the ids that ``transformers`` gives. It may run in several threads."""
    from transformers import AutoTokenizer

    loaded: Any = once(lambda: AutoTokenizer.from_pretrained(folder), f"data.tokenizer {folder}")
    fast = getattr(loaded, "backend_tokenizer", None)
    if fast is None:
        raise ConfigError(
            f"data.tokenizer {folder} is written in Python, which is too slow to use while training; make shards with "
            "bert-pretrain prepare"
        )
    fast.no_padding()
    fast.no_truncation()

    def tokenise(texts: list[str]) -> list[np.ndarray]:
        encoded = fast.encode_batch_fast(texts, add_special_tokens=False)
        return [piece for row in encoded for piece in cutter.all_pieces(np.array(row.ids, dtype=np.int32))]

    return tokenise
