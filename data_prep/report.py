"""``bert-pretrain data-report``: a page with statistics and plots of a directory of shards.

Reads the manifest and all shards, which are checked as by :mod:`data_prep.verify`.
"""

import base64
import html
import io
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bert_pretrain.config_loading import entry_point
from bert_pretrain.data.shard_directory import SPLITS, read_manifest, shard_folder, shard_paths
from data_prep.engine.totals import Totals, show_sample, table_rows
from data_prep.options import VerifyConfig
from data_prep.samples.tokenised import LENGTH_BIN
from data_prep.samples.tokenizer import Vocabulary
from data_prep.verify import find_vocabulary, verify_split

PAGE = "report.html"
_FREQUENT = 30  # tokens in the plot
_SIZE: dict[str, Any] = {"figsize": (9, 3), "layout": "constrained"}
_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}td,th{padding:.15em .8em;border-bottom:1px solid #ddd;text-align:left}"
    "td.n{text-align:right}code,pre{background:#f5f5f5;white-space:pre-wrap}img{max-width:100%}"
)


@entry_point("data_report", VerifyConfig)
def main(config: VerifyConfig) -> None:
    """Check a directory of shards and write report.html beside them.

        bert-pretrain data-report dir=data/demo

    The page shows what each stage kept and dropped, with examples; lengths, padding, masks and unknown tokens; and
    decoded samples.
    """
    directory = shard_folder(config.dir, config)
    vocabulary = find_vocabulary(config.vocab, config.lowercase, directory)
    found = {split: shard_paths(directory, split) for split in SPLITS}
    totals = {
        split: verify_split(directory, paths, vocabulary, config.samples) for split, paths in found.items() if paths
    }
    page = directory / PAGE
    page.write_text(render(directory.name, read_manifest(directory), totals, vocabulary), encoding="utf-8")
    print(page)


def render(name: str, manifest: dict[str, Any] | None, totals: dict[str, Totals], vocabulary: Vocabulary | None) -> str:
    """The page as HTML. Without a manifest (legacy shards) it has no sources and stages."""
    parts = [f"<h1>Shards: {html.escape(name)}</h1>"]
    rows = {split: table_rows(of_split) for split, of_split in totals.items()}
    names = list(next(iter(rows.values())))
    parts.append(_table(["", *rows], [[key, *(rows[split][key] for split in rows)] for key in names]))
    parts += [_image(_lengths(totals)), _image(_masks(totals))]
    if vocabulary is not None:
        parts.append(_image(_frequent_tokens(totals, vocabulary)))
    if manifest is not None and "stages" in manifest:
        parts += _stages(manifest)
    parts.append("<h2>Samples</h2><p>A masked position is shown as {input token|original token}.</p>")
    for split, of_split in totals.items():
        parts += [f"<p><b>{split}</b>{html.escape(show_sample(rows, vocabulary))}</p>" for rows in of_split.examples]
    head = f"<!doctype html><meta charset=utf-8><title>{html.escape(name)}</title><style>{_STYLE}</style>"
    return head + "".join(parts) + "\n"


def _stages(manifest: dict[str, Any]) -> list[str]:
    """Sources, the counts of every stage, what the rules dropped, with examples, and sentence lengths."""
    parts = ["<h2>Sources</h2>"]
    keys = ["name", "version", "licence", "documents", "characters"]
    parts.append(_table(keys, [[str(row.get(key, "")) for key in keys] for row in manifest["sources"]]))
    shares = manifest["tokenizer"].get("text", {})
    parts.append("<h2>Tokenizer</h2>")
    rows = [
        [split, when, f"{of['pieces_a_word']:.3f}", f"{of['unknown_share']:.3%}"]
        for split, values in shares.items()
        for when, of in values.items()
    ]
    parts.append(_table(["text", "words added", "pieces a word", "unknown"], rows))
    parts.append("<h2>Stages</h2>")
    counts = []
    for stage in manifest["stages"]:
        for key, value in stage.items():
            if isinstance(value, int | float):
                counts.append([stage["stage"], key.replace("_", " "), f"{value:,}"])
            elif key.isdigit():  # a sequence length: the counts of its samples, by split
                counts += [
                    [f"samples {key}", f"{split}, {name.replace('_', ' ')}", f"{number:,}"]
                    for split, of_split in value.items()
                    for name, number in of_split.items()
                    if isinstance(number, int)
                ]
    parts.append(_table(["stage", "count", ""], counts))
    parts.append("<h2>Dropped by rule</h2>")
    for stage in manifest["stages"]:
        for rule, count in stage.get("dropped", {}).items():
            samples = stage["dropped_samples"].get(rule, [])
            shown = html.escape("\n".join(samples))
            parts.append(f"<p><b>{html.escape(rule.replace('_', ' '))}</b>: {count:,}</p><pre>{shown}</pre>")
        if "tokens_a_sentence" in stage:
            parts.append(_image(_sentence_lengths(stage["tokens_a_sentence"])))
    return parts


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def _image(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=90)
    return f'<img src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'


def _lengths(totals: dict[str, Totals]) -> Figure:
    figure = Figure(**_SIZE)
    axes = figure.subplots()
    for split, of_split in totals.items():
        shares = of_split.lengths / max(1, of_split.lengths.sum())
        axes.step(np.arange(len(shares)), shares, where="mid", label=split)
    axes.set(xlabel="tokens of a sample", ylabel="share of the samples", yscale="log")
    axes.legend()
    return figure


def _masks(totals: dict[str, Totals]) -> Figure:
    figure = Figure(**_SIZE)
    left, right = figure.subplots(1, 2)
    for split, of_split in totals.items():
        shares = of_split.masks / max(1, of_split.masks.sum())
        left.step(np.arange(len(shares)), shares, where="mid", label=split)
        counts = of_split.positions / max(1, of_split.positions.max())
        right.step(np.arange(len(counts)), counts, where="mid", label=split)
    left.set(xlabel="masked tokens of a sample", ylabel="share of the samples")
    right.set(xlabel="position in the sample", ylabel="masks (relative)")
    left.legend()
    return figure


def _frequent_tokens(totals: dict[str, Totals], vocabulary: Vocabulary) -> Figure:
    figure = Figure(**_SIZE)
    axes = figure.subplots()
    counts = sum(
        (of_split.tokens for of_split in totals.values()), start=np.zeros(len(vocabulary.tokens), dtype=np.int64)
    )
    order = np.argsort(-counts, kind="stable")[:_FREQUENT]
    axes.bar([vocabulary.tokens[token].replace("$", r"\$") for token in order], counts[order] / max(1, counts.sum()))
    axes.tick_params(axis="x", rotation=90)
    axes.set(ylabel="share of the tokens", title=f"{np.count_nonzero(counts):,} of {len(counts):,} tokens occur")
    return figure


def _sentence_lengths(bins: list[int]) -> Figure:
    figure = Figure(**_SIZE)
    axes = figure.subplots()
    shown = [*bins[:40], sum(bins[40:])]
    axes.bar(np.arange(len(shown)) * LENGTH_BIN, shown, width=LENGTH_BIN * 0.9, align="edge")
    axes.set(xlabel="tokens of a sentence (the last bar: all longer ones)", ylabel="sentences")
    return figure


if __name__ == "__main__":
    main()
