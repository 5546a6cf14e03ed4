"""What the report says of the shards: lengths, tokenizer, masks, decoded samples."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bert_pretrain.html_page import (
    SERIES,
    Cell,
    Html,
    Number,
    drawn,
    element,
    figure,
    figures,
    folded,
    paragraph,
    sample,
    table,
)
from data_prep.engine.shard_statistics import Totals, show_sample, table_rows
from data_prep.report.corpus import share
from data_prep.report.stages import Record, added_up, of_stage
from data_prep.samples.examples import LENGTH_BIN
from data_prep.samples.tokenizer import Vocabulary

_SIZE: dict[str, Any] = {"figsize": (4.6, 2.7), "layout": "constrained"}
_FREQUENT = 30  # tokens
_SENTENCE_BINS = 25  # in the figure
_TOKENISED = 5  # documents


def lengths(manifest: Record | None, totals: dict[str, Totals]) -> list[Html]:
    """Lengths of documents, sentences and samples: a table, and their distributions."""
    rows: list[list[Cell]] = []
    drawings = []
    for key, what, unit in (
        ("sentences_a_document", "documents", "sentences"),
        ("tokens_a_document", "documents", "tokens"),
        ("tokens_a_sentence", "sentences", "tokens"),
    ):
        bins = added_up(manifest or {}, "token ids", key)
        if not bins or not sum(bins):
            continue
        total = added_up(manifest or {}, "token ids", unit) or 0
        names = _names(len(bins), by_bits=what == "documents")
        ranges = [names[_quantile(bins, q)] for q in (0.1, 0.5, 0.9, 1.0)]
        mean = total / sum(bins)
        rows.append([f"{unit} of {what}", sum(bins), Number(mean, f"{mean:,.1f}"), *ranges])
        drawings.append(_bars(bins, names, f"{unit} of a {what.removesuffix('s')}", what))
    for split, of in totals.items():
        count = of.lengths.tolist()
        exact = [f"{_quantile(count, q):,}" for q in (0.1, 0.5, 0.9, 1.0)]
        mean = of.real_tokens / max(1, of.samples)
        rows.append([f"tokens of {split} samples", of.samples, Number(mean, f"{mean:,.1f}"), *exact])
    drawings.append(_sample_lengths(totals))
    header = ["length", "number", "mean", "10 % up to", "median", "90 % up to", "longest"]
    caption = "Lengths of documents and sentences, without duplicates, and of samples, with special tokens"
    return [table(caption, header, rows), figures(*drawings)]


def _names(bins: int, by_bits: bool) -> list[str]:
    """The ranges of bins: 0, 1, 2-3, 4-7, ..., or 0-7, 8-15, ..."""
    edges = [0, *(1 << bit for bit in range(bins))] if by_bits else [LENGTH_BIN * number for number in range(bins + 1)]
    ranges = [(low, high - 1) for low, high in itertools.pairwise(edges)]
    return [f"{low:,}" if low == high else f"{low:,}\u2013{high:,}" for low, high in ranges]


def _quantile(counts: Sequence[int], share_below: float) -> int:
    """The first place at which ``share_below`` of the counts are reached."""
    sums = np.cumsum(counts)
    return int(np.searchsorted(sums, share_below * sums[-1]))


def _bars(bins: Sequence[int], names: Sequence[str], label: str, what: str) -> Html:
    first = int(np.flatnonzero(bins)[0])
    bins, names = bins[first:], names[first:]
    if len(bins) > _SENTENCE_BINS:
        bins = [*bins[: _SENTENCE_BINS - 1], sum(bins[_SENTENCE_BINS - 1 :])]
        names = [*names[: _SENTENCE_BINS - 1], f"{names[_SENTENCE_BINS - 1].split(chr(0x2013))[0]}+"]
    chart = Figure(**_SIZE)
    axes = chart.subplots()
    axes.bar(np.arange(len(bins)), bins, color=SERIES[0], width=0.85)
    step = -(-len(bins) // 8)
    axes.set_xticks(np.arange(0, len(bins), step), [*names[::step]], rotation=45, ha="right", fontsize=8)
    axes.set(xlabel=label, ylabel=what)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    _plain(axes)
    most = int(np.argmax(bins))
    alt = f"Bars: {what} by {label}; most, {bins[most]:,}, have {names[most]}"
    return figure(drawn(chart), alt, f"{what.capitalize()} by {label}")


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)


def _steps(totals: dict[str, Totals], name: str, xlabel: str, ylabel: str, log: bool = False) -> Figure:
    """The shares of an array of counts, for each split."""
    chart = Figure(**_SIZE)
    axes = chart.subplots()
    for color, (split, of_split) in zip(SERIES, totals.items(), strict=False):
        counts = getattr(of_split, name)
        axes.step(np.arange(len(counts)), counts / max(1, counts.sum()), where="mid", label=split, color=color, lw=1.3)
    axes.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log else "linear")
    axes.legend(frameon=False)
    _plain(axes)
    return chart


def _sample_lengths(totals: dict[str, Totals]) -> Html:
    chart = _steps(totals, "lengths", "tokens of a sample", "share of the samples", log=True)
    full = {split: of.lengths[-1] / max(1, of.samples) for split, of in totals.items()}
    alt = "Lines: share of the samples by length; full: " + ", ".join(f"{split} {of:.1%}" for split, of in full.items())
    return figure(drawn(chart), alt, "Samples by length, on a log scale")


def tokenizer(manifest: Record | None, totals: dict[str, Totals], vocabulary: Vocabulary | None) -> list[Html]:
    """Kind and size, pieces a word, unknown share, the most frequent tokens, and a few texts in pieces."""
    parts = []
    if vocabulary is not None:
        parts.append(table("The tokenizer", ["property", "value"], _facts(totals, vocabulary)))
    shares = (manifest or {}).get("tokenizer", {}).get("text", {})
    rows: list[list[Cell]] = [
        [
            split,
            {"before": "before words were added", "after": "as it is"}[when],
            Number(of["pieces_a_word"], f"{of['pieces_a_word']:.3f}"),
            Number(of["unknown_share"], f"{of['unknown_share']:.3%}"),
        ]
        for split, values in shares.items()
        for when, of in values.items()
    ]
    if rows:
        caption = (
            "Pieces a word (fertility; 0 if the tokenizer marks no words), and unknown pieces, over the whole text"
        )
        parts.append(table(caption, ["text", "tokenizer", "pieces a word", "unknown"], rows))
    if vocabulary is not None:
        parts += [_tokenised(manifest or {}, vocabulary), _frequent(totals, vocabulary)]
    return [part for part in parts if part]


def _facts(totals: dict[str, Totals], vocabulary: Vocabulary) -> list[list[Cell]]:
    state = json.loads(vocabulary.tokenizer.to_str())
    kinds = {key: (state.get(key) or {}).get("type", "none") for key in ("model", "normalizer", "pre_tokenizer")}
    used = int(np.count_nonzero(_uses(totals, vocabulary)))
    roles = ", ".join(f"{role} {vocabulary.tokens[number]} ({number})" for role, number in vocabulary.roles.items())
    return [
        ["kind", f"{kinds['model']} (normalizer {kinds['normalizer']}, pre-tokenizer {kinds['pre_tokenizer']})"],
        ["entries", f"{len(vocabulary.tokens):,}, {used:,} of them in the shards"],
        ["lowercases", "yes" if vocabulary.lowercase else "no"],
        ["strips accents", "yes" if vocabulary.strips_accents else "no"],
        ["special tokens", roles],
    ]


def _uses(totals: dict[str, Totals], vocabulary: Vocabulary) -> np.ndarray:
    """(V,) uses of each token in the samples of all splits."""
    start = np.zeros(len(vocabulary.tokens), dtype=np.int64)
    return sum((of_split.tokens for of_split in totals.values()), start=start)


def _tokenised(manifest: Record, vocabulary: Vocabulary) -> Html:
    texts = [
        text
        for stage in of_stage(manifest, "token ids")
        for of_corpus in stage.get("examples", {}).get("documents", {}).values()
        for text in of_corpus[:: max(1, -(-len(of_corpus) // _TOKENISED))]
    ]
    vocabulary.tokenizer.encode_special_tokens = True
    encoded = vocabulary.tokenizer.encode_batch(texts, add_special_tokens=False)
    shown = [sample(" \u00b7 ".join(encoding.tokens)) for encoding in encoded]
    return folded("Texts in pieces", *shown, is_open=True) if shown else Html()


def _frequent(totals: dict[str, Totals], vocabulary: Vocabulary) -> Html:
    uses = _uses(totals, vocabulary)
    order = np.argsort(-uses, kind="stable")[:_FREQUENT].tolist()
    rows: list[list[Cell]] = [
        [element("bdi", vocabulary.tokens[token]), int(uses[token]), share(int(uses[token]), int(uses.sum()))]
        for token in order
        if uses[token]
    ]
    caption = "The most frequent tokens of the samples, before masking"
    return folded("The most frequent tokens", table(caption, ["token", "times", "share"], rows, is_sortable=True))


def samples(totals: dict[str, Totals], vocabulary: Vocabulary | None) -> list[Html]:
    """Counts of the samples by split, where masks are, and decoded samples."""
    columns = {split: table_rows(of_split) for split, of_split in totals.items()}
    names = dict.fromkeys(name for rows in columns.values() for name in rows)
    rows: list[list[Cell]] = [[name, *(of_split.get(name, "") for of_split in columns.values())] for name in names]
    masks = _steps(totals, "masks", "masked tokens of a sample", "share of the samples")
    places = _steps(totals, "positions", "position in the sample", "share of the masks")
    parts = [
        table("The samples", ["figure", *columns], rows),
        figures(
            figure(drawn(masks), "Lines: share of the samples by masked tokens", "Samples by their masked tokens"),
            figure(drawn(places), "Lines: share of the masks by position", "Masks by position"),
        ),
        paragraph("A masked position is shown as {input token|original token}.", kind="muted"),
    ]
    for split, of_split in totals.items():
        shown = [sample(show_sample(rows_of, vocabulary).strip()) for rows_of in of_split.examples]
        if shown:
            parts.append(folded(f"{split}: {len(shown)} samples", *shown, is_open=split == "train"))
    return parts
