"""What the report says of the text: sources, what was dropped, duplicates, languages, unknown words."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from bert_pretrain.html_page import Cell, Html, Number, element, folded, paragraph, sample, table
from data_prep.report.stages import Record, added_up, of_stage
from data_prep.samples.examples import CHARACTERS, DOCUMENTS

_TO_READ = 10  # documents of each corpus
_SCRIPTS, _LANGUAGES = 10, 15  # rows
_WORDS, _SHOWN = 100, 20  # unknown words; without a click


def share(count: float, whole: float) -> Number:
    """A share as a cell."""
    value = count / whole if whole else 0.0
    return Number(value, f"{value:.2%}")


def sources(manifest: Record) -> list[Html]:
    """Name, licence, size, language and weight of every source."""
    total = sum(row.get("characters", 0) for row in manifest["sources"])
    rows: list[list[Cell]] = []
    for row in manifest["sources"]:
        names = [row.get(key, "") for key in ("name", "corpus", "version", "licence", "language")]
        characters = row.get("characters", 0)
        rows.append([*names, row.get("documents"), characters, share(characters, total), row.get("weight")])
    header = ["source", "corpus", "version", "licence", "language set", "documents", "characters", "share", "weight"]
    caption = (
        "Where the text came from, after cleaning and before duplicates were dropped. The weight says how often the "
        "text of a corpus is used."
    )
    return [table(caption, header, rows, is_sortable=True)]


def dropped(manifest: Record) -> list[Html]:
    """What each cleaning rule dropped: how often, and samples to read."""
    counts: Counter[str] = Counter()
    samples: dict[str, list[str]] = {}
    for stage in of_stage(manifest, "text"):
        counts.update(stage.get("dropped", {}))
        for rule, texts in stage.get("dropped_samples", {}).items():
            samples.setdefault(rule, []).extend(texts)
    if not counts:
        return [paragraph("No rule dropped anything.")]
    names = {rule: rule.replace("_", " ") for rule in counts}
    rows: list[list[Cell]] = [
        [names[rule], count, share(count, counts.total())] for rule, count in counts.most_common()
    ]
    caption = "Paragraphs, sentences, rows or whole documents that a rule of cleaning dropped"
    shown = [
        folded(f"{names[rule]}: the first of {count:,}", *map(sample, dict.fromkeys(samples.get(rule, []))))
        for rule, count in counts.most_common()
    ]
    return [table(caption, ["rule", "dropped", "share"], rows, is_sortable=True), *shown]


def duplicates(manifest: Record) -> list[Html]:
    """How many documents and sentences were dropped as duplicates, and the largest clusters with their texts."""
    keys = ("exact_duplicates", "near_duplicates", "duplicate_clusters", "near_duplicate_candidates")
    counts = {key: added_up(manifest, "repeats", key) for key in (*keys, "repeated_sentences")}
    rows: list[list[Cell]] = [[key.replace("_", " "), count] for key, count in counts.items() if count is not None]
    options = manifest.get("options", {}).get("duplicates", {})
    caption = (
        "Duplicate documents. Exact: the same text but for case. Near: the sets of 5-grams are similar by "
        f"{options.get('similarity', 'the given share')} or more, estimated with MinHash. The first one is kept."
    )
    parts = [table(caption, ["count", "number"], rows)]
    clusters = [row for stage in of_stage(manifest, "repeats") for row in stage.get("largest_clusters", [])]
    if clusters:
        parts.append(element("h3", "The largest clusters, those with near duplicates first"))
    return parts + [_cluster(row, is_open=number == 0) for number, row in enumerate(clusters)]


def _cluster(row: Record, is_open: bool) -> Html:
    head = f"{row['documents']:,} documents, {row['near']:,} of them near duplicates: {row['kept'][:60]}"
    parts = [paragraph("kept", kind="muted"), sample(row["kept"])]
    for copy in row["copies"]:
        place = copy["differs_from"]
        what = "the same" if place is None else f"differs from character {place:,} on"
        parts += [
            paragraph(f"dropped: similarity {copy['similarity']:.2f}, {what}", kind="muted"),
            sample(copy["text"]),
        ]
    return folded(head, *parts, is_open=is_open)


def _drawn(manifest: Record) -> dict[str, list[str]]:
    """The beginnings of documents drawn at random, by corpus."""
    found: dict[str, list[str]] = {}
    for stage in of_stage(manifest, "token ids"):
        for corpus, texts in stage.get("examples", {}).get("documents", {}).items():
            found.setdefault(corpus, []).extend(texts)
    return found


def languages(manifest: Record) -> list[Html]:
    """The languages and scripts of documents drawn at random."""
    drawn = {corpus: texts for corpus, texts in _drawn(manifest).items() if texts}
    if not drawn:
        return []
    count = sum(map(len, drawn.values()))
    documents = added_up(manifest, "token ids", "documents") or 0
    which = "all documents" if count >= documents else f"{count} of the {documents:,} documents, drawn at random"
    which += f" (the first {CHARACTERS} characters of each)"
    if count < documents:
        which += f"; shares are right within {100 / count**0.5:.0f} points (19 times of 20)"
    scripts = {corpus: script_counts(texts) for corpus, texts in drawn.items()}
    parts = [_shares_table(f"Scripts of the letters in {which}", "script", scripts, _SCRIPTS)]
    try:
        import py3langid  # slow to load, and part of the extra "data"
    except ModuleNotFoundError:
        return [*parts, paragraph("The languages are not shown: py3langid (the extra data) is not installed.")]
    found = {corpus: Counter(py3langid.classify(text)[0] for text in texts) for corpus, texts in drawn.items()}
    caption = f"Languages (ISO 639-1, by py3langid, which short texts can mislead) of {which}"
    return [_shares_table(caption, "language", found, _LANGUAGES), *parts]


def script_counts(texts: Iterable[str]) -> Counter[str]:
    """Letters by script: the first word of a letter's Unicode name."""
    letters = Counter(letter for text in texts for letter in unicodedata.normalize("NFKC", text) if letter.isalpha())
    counts: Counter[str] = Counter()
    for letter, count in letters.items():
        name = unicodedata.name(letter, "other").split()[0].split("-")[0]
        counts["Han" if name == "CJK" else name.capitalize()] += count
    return counts


def _shares_table(caption: str, what: str, counts: Mapping[str, Counter[str]], most: int) -> Html:
    """Shares by corpus, of the ``most`` commonest in all."""
    together: Counter[str] = Counter()
    for of_corpus in counts.values():
        together.update(of_corpus)
    names = [name for name, _ in sorted(together.items(), key=lambda item: (-item[1], item[0]))]
    rows: list[list[Cell]] = []
    for name in names[:most]:
        rows.append([name, *(share(of_corpus[name], of_corpus.total()) for of_corpus in counts.values())])
    if names[most:]:
        rest = [sum(of_corpus[name] for name in names[most:]) for of_corpus in counts.values()]
        shares = [share(count, of.total()) for count, of in zip(rest, counts.values(), strict=True)]
        rows.append([f"{len(names) - most} others", *shares])
    return table(caption, [what, *counts], rows, is_sortable=True)


def documents(manifest: Record) -> list[Html]:
    """The beginnings of a few documents of each corpus."""
    parts = []
    for corpus, texts in _drawn(manifest).items():
        shown = texts[:: max(1, -(-len(texts) // _TO_READ))]
        if shown:
            parts.append(folded(f"{corpus}: the beginnings of {len(shown)} documents", *map(sample, shown)))
    if parts:
        parts.insert(
            0, paragraph(f"Chosen among about {DOCUMENTS} that were drawn at random, after cleaning.", kind="muted")
        )
    return parts


def unknown_words(manifest: dict[str, Any]) -> list[Html]:
    """The commonest unknown words."""
    stages = [stage["examples"] for stage in of_stage(manifest, "token ids") if "examples" in stage]
    if not stages:
        return []
    unknown = added_up(manifest, "token ids", "unknown_tokens") or 0
    if unknown == 0:
        return [paragraph("No token of the text is unknown.")]
    counts: Counter[str] = Counter()
    for examples in stages:
        counts.update(examples["unknown"])
    looked_up = sum(examples["looked_up"] for examples in stages)
    rows: list[list[Cell]] = []
    for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_WORDS]:
        name = unicodedata.name(word, "") if len(word) == 1 else ""
        code = f"U+{ord(word):04X}" if len(word) == 1 else ""
        rows.append(
            [element("bdi", word), count, share(count, looked_up), code if name.startswith("CJK") else f"{code} {name}"]
        )
    header = ["word", "times", "share", "character"]
    caption = (
        f"The {len(rows)} commonest unknown words. {looked_up:,} of the {unknown:,} unknown tokens were looked up; the "
        "share is of those"
    )
    parts = [table(caption, header, rows[:_SHOWN], is_sortable=True)]
    if rows[_SHOWN:]:
        more = f"Places {_SHOWN + 1} to {len(rows)}"
        parts.append(folded(more, table("Unknown words", header, rows[_SHOWN:], is_sortable=True)))
    return parts
