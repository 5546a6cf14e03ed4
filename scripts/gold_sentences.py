"""Sentences counted by hand in the corpora of ``prove_languages.py``, and what a splitter gets wrong in them.

``gold_sentences.json`` has, by corpus, two draws of paragraphs at random among those inside which a sentence could end:
a hash of the paragraph as ``prepare`` cleans it, and the places inside, in characters, at which a sentence ends. The
texts stay in their packages. Rules were written by reading the first draw; the second was read after them.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from repository_root import ROOT

from data_prep.sources.cleaning import normalise
from data_prep.text.sentences import split_sentences

GOLD: dict[str, list[dict[str, list[int]]]] = json.loads((ROOT / "scripts/gold_sentences.json").read_text())
DRAWS = (0, 1)


def paragraphs(corpus: str, text: Path, draws: Iterable[int] = DRAWS) -> Iterator[tuple[str, list[int]]]:
    """The paragraphs of a corpus that were read, with the places where their sentences end."""
    gold = {digest: ends for draw in draws for digest, ends in GOLD[corpus][draw].items()}
    for raw in text.read_text(encoding="utf-8").split("\n"):
        line = normalise(raw, "NFC")
        ends = gold.pop(hashlib.sha256(line.encode()).hexdigest()[:12], None)
        if ends is not None:
            yield line, ends
    if gold:
        raise ValueError(f"{text}: {len(gold)} paragraphs that were read are missing: another version of the package?")


def faults(text: str, ends: list[int], sentences: Iterable[str]) -> tuple[set[int], set[int]]:
    """The places where sentences were not split, and those within a sentence, counted in characters but spaces."""
    right = {len("".join(text[:end].split())) for end in ends}
    found, place = set(), 0
    for sentence in sentences:
        place += len("".join(sentence.split()))
        found.add(place)
    found.discard(place)
    return right - found, found - right


Splitter = Callable[[str], Iterable[str]]


def count_faults(corpus: str, text: Path, split: Splitter, draws: Iterable[int] = DRAWS) -> tuple[int, int, int]:
    """Sentences, those not split from the next, and places split within one."""
    total = missed = wrong = 0
    for paragraph, ends in paragraphs(corpus, text, draws):
        not_split, within = faults(paragraph, ends, split(paragraph))
        total, missed, wrong = total + 1 + len(ends), missed + len(not_split), wrong + len(within)
    return total, missed, wrong


def faults_a_thousand(corpus: str, language: str, text: Path) -> float | None:
    """Faults of our splitter in a thousand sentences; None if nobody has read the corpus."""
    if corpus not in GOLD:
        return None
    total, missed, wrong = count_faults(corpus, text, lambda paragraph: split_sentences(paragraph, language))
    return round(1000 * (missed + wrong) / total, 1)
