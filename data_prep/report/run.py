"""``bert-pretrain data-report``: one HTML file about a directory of shards, to read and to mail.

Reads the manifest and all shards, which are checked as by :mod:`data_prep.verify`. What the page shows of the text
itself is what the preparation kept in the manifest, so that the page needs neither the corpus nor ``out_dir/corpus``.
"""

import time
from collections.abc import Sequence
from typing import Any

from bert_pretrain.data.shard_directory import MANIFEST, SPLITS, read_manifest, shard_folder, shard_paths
from bert_pretrain.errors import ConfigError
from bert_pretrain.files.file_system import replace_file, require_writable
from bert_pretrain.html_page import Cell, Html, page, paragraph, table
from bert_pretrain.options.entry_point import entry_point
from data_prep.engine.shard_statistics import Totals
from data_prep.options import VerifyConfig
from data_prep.report import corpus, shards, stages
from data_prep.samples.tokenizer import Vocabulary
from data_prep.verify import find_vocabulary, verify_split

PAGE = "report.html"


@entry_point("data_report", VerifyConfig)
def main(config: VerifyConfig) -> None:
    """Check a directory of shards and write report.html beside them.

        bert-pretrain data-report dir=data/demo

    One file that can be mailed: what each stage kept and dropped, with samples; lengths, languages, unknown words,
    duplicates; the tokenizer; masks and padding, and decoded samples; sources, options and versions.
    """
    directory = shard_folder(config.dir, config)
    found = {split: shard_paths(directory, split) for split in SPLITS}
    require_writable(directory, "dir", "copy the shards to a writable directory")
    vocabulary = find_vocabulary(config.vocab, config.lowercase, directory)
    totals = {
        split: verify_split(directory, paths, vocabulary, config.samples) for split, paths in found.items() if paths
    }
    written = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime((found["train"] + found["heldout"])[0].stat().st_mtime))
    try:
        text = render(directory.resolve().name, read_manifest(directory), totals, vocabulary, written)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{directory / MANIFEST} is not as bert-pretrain prepare writes it ({error!r}); restore it from a copy"
        ) from None
    # A row of a corpus may hold half a surrogate pair, which UTF-8 lacks.
    replace_file(directory / PAGE, text.encode(errors="backslashreplace"))
    print(directory / PAGE)


def render(
    name: str,
    manifest: dict[str, Any] | None,
    totals: dict[str, Totals],
    vocabulary: Vocabulary | None,
    written: str,
) -> str:
    """The page as HTML. Without a manifest (legacy shards) it is about the shards only."""
    of_text: dict[str, Sequence[Html]] = {}
    unknown: Sequence[Html] = []
    options: Sequence[Html] = []
    read: list[Html] = []
    told = [f"There is no {MANIFEST}: nothing is known of how these shards were made."]
    if manifest is not None and "stages" in manifest:
        told = stages.told(manifest)
        unknown = corpus.unknown_words(manifest)
        options = stages.options(manifest)
        read = [paragraph(stages.summary(manifest))]
        of_text = {
            "Stages": stages.flow(manifest),
            "Dropped by rule": corpus.dropped(manifest),
            "Duplicates": corpus.duplicates(manifest),
            "Sources": corpus.sources(manifest),
            "Languages": corpus.languages(manifest),
            "Documents to read": corpus.documents(manifest),
        }
    sections = {
        **of_text,
        "Lengths": shards.lengths(manifest, totals),
        "Tokenizer": shards.tokenizer(manifest, totals, vocabulary),
        "Unknown words": unknown,
        "Samples": shards.samples(totals, vocabulary),
        "Options and versions": options,
    }
    lead = [*(paragraph(line, kind="warning") for line in told), *read, _summary(manifest, totals, written)]
    return page(f"Data report: {name}", sections, lead)


def _summary(manifest: dict[str, Any] | None, totals: dict[str, Totals], written: str) -> Html:
    """The main figures, by split."""

    def row(name: str, key: str) -> list[Cell]:
        return [name, *(getattr(of_split, key) for of_split in totals.values())]

    length = len(next(iter(totals.values())).lengths) - 1
    rows = [row("shards", "shards"), row("samples", "samples"), row("tokens, without padding", "real_tokens")]
    rows.append(["unknown tokens", *(corpus.share(of.unknown_tokens, of.real_tokens) for of in totals.values())])
    caption = f"The shards: sequences of up to {length} tokens, written {written}"
    if manifest is not None and "unigram_entropy" in manifest:
        caption += f"; unigram entropy of the masked words {manifest['unigram_entropy']:.3f} nats"
    return table(caption, ["figure", *totals], rows)
