"""Cleaning rules: first each paragraph, then the whole document, is kept or dropped.

The options are those of ``corpus.cleaning``. Drops are counted by rule, with a few samples for the report. All rules
hold for any script, but ``boilerplate`` knows English phrases only.
"""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from data_prep.options import CleaningConfig
from data_prep.sources.letters import count_letters, count_words

PLACEHOLDER = "\ufffc"  # of what has no text, such as a formula; a sentence with it is dropped
SAMPLES_PER_RULE = 5
_SAMPLE_LENGTH = 200
_LANGUAGE_CHARACTERS = 2000  # of a document, enough to identify its language

_CLOSING = r"[)\"'”’»\]」』）】〉》]*$"
_SENTENCE_END = re.compile(r"[.!?…།༎༏༐༑༔፧፨៕᠃᠉᱾᱿߹꯫꓿܀܁܂。．！？｡।॥۔؟።։။។៕]" + _CLOSING)
_SEMICOLON_END = re.compile("[;\u037e]" + _CLOSING)  # ends a question in Greek; the second is the same sign
_GREEK = re.compile("[\u0370-\u037d\u037f-\u03ff\u1f00-\u1fff]")
_BOILERPLATE = re.compile(
    r"all rights reserved|terms of (?:use|service)|privacy policy|cookies? policy|uses cookies|enable javascript"
    r"|lorem ipsum|project gutenberg|\bisbn[-: ]*[\d-]{9}|click here|sign up for our|subscribe to our"
    r"|share on (?:facebook|twitter)|transcriber'?s? note|this page (?:was|has been) (?:last )?(?:modified|moved)"
    r"|printed in (?:the )?(?:usa|u\.s\.a\.|great britain)",
    re.IGNORECASE,
)
# Bars of a table, dots up to a page number, rules.
_LEADERS = re.compile(r"^\||\|$|(?:\s\|\s.*){2}|(?:\. ?){5,}[\divxlc]+\.?$|(?:[-_=*~] ?){6,}", re.IGNORECASE)
_INVISIBLE = re.compile(
    r"[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\x00-\x08\x0e-\x1f\x7f-\x9f]"
    # Joiners are part of Persian, of Hindi, and of emoji.
    r"|(?<![\u0600-\u08ff\u0900-\u0dff\u1000-\u109f\u1780-\u17ff\u2600-\u27bf\ufe0f\U0001f300-\U0001faff])[\u200c\u200d]"
)
_FEW_SYMBOLS = 6  # always allowed, for short speech such as "Why?" with its quotes
_BOILERPLATE_LENGTH = 400  # characters; a longer paragraph with such a phrase is text about it


@dataclass
class Dropped:
    """What was dropped: counts by rule, the first samples, and on request all texts."""

    counts: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[str]] = field(default_factory=dict)
    texts: list[tuple[str, str]] | None = None
    """(rule, text) of everything, if it is to be written out."""

    def add(self, rule: str, sample: str, count: int = 1) -> None:
        """Count ``sample`` under ``rule``; its first characters are kept."""
        self.counts[rule] += count
        sample = well_formed(sample)
        if self.texts is not None:
            self.texts.append((rule, sample))
        kept = self.samples.setdefault(rule, [])
        if len(kept) < SAMPLES_PER_RULE:
            kept.append(sample[:_SAMPLE_LENGTH])

    def as_record(self) -> dict[str, Any]:
        """As the keys of a task's record."""
        return {"dropped": dict(sorted(self.counts.items())), "dropped_samples": dict(sorted(self.samples.items()))}


def well_formed(text: str) -> str:
    """``text`` with a question mark for each half of a surrogate pair, which JSON and Python can hold, UTF-8 not."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def clean_paragraphs(paragraphs: list[str], rules: CleaningConfig, language: str, dropped: Dropped) -> list[str]:
    """The paragraphs of one document that the rules keep, normalised; none if the whole document is dropped."""
    kept = _all_normalised(paragraphs, rules.unicode)
    if rules.drop_boilerplate or rules.prose_only:
        found, kept = kept, []
        for paragraph in found:
            rule = rejected_as(paragraph, rules)
            if rule is None:
                kept.append(paragraph)
            else:
                dropped.add(rule, paragraph)
    if not kept:
        return []
    text = " ".join(kept)
    if rules.min_document_words and count_words(text) < rules.min_document_words:
        dropped.add("short_document", text)
        return []
    if rules.language_filter:
        import py3langid  # slow to load

        found = py3langid.classify(text[:_LANGUAGE_CHARACTERS])[0]
        if found != language:
            dropped.add("other_language", f"({found}) {text[:_SAMPLE_LENGTH]}")
            return []
    return kept


def _all_normalised(paragraphs: list[str], form: str) -> list[str]:
    """:func:`normalise` of all paragraphs, without those of which nothing is left."""
    text = " ".join(paragraphs)
    if text and text.isprintable() and single_spaced(text) == text and _is_normal(text, form):
        return paragraphs
    return [normal for paragraph in paragraphs if (normal := normalise(paragraph, form))]


def normalise(paragraph: str, form: str) -> str:
    """Apply the Unicode normal form, remove invisible characters, and make white space single spaces."""
    if not _is_normal(paragraph, form):
        paragraph = unicodedata.normalize("NFC" if form == "NFC" else "NFKC", paragraph)
    if form != "none" and not paragraph.isprintable():  # the invisible characters are not
        paragraph = _INVISIBLE.sub("", paragraph)
    return single_spaced(paragraph)


def _is_normal(text: str, form: str) -> bool:
    normal_form: Literal["NFC", "NFKC"] = "NFC" if form == "NFC" else "NFKC"
    return form == "none" or text.isascii() or unicodedata.is_normalized(normal_form, text)


def single_spaced(text: str) -> str:
    """``text`` with single spaces for white space, and none at its ends."""
    if text.isprintable() and "  " not in text:  # of white space, only the space is printable
        return text.strip()
    return " ".join(text.split())


def rejected_as(paragraph: str, rules: CleaningConfig) -> str | None:
    """The first rule by which a paragraph is dropped; None if it is kept."""
    if rules.drop_boilerplate and len(paragraph) < _BOILERPLATE_LENGTH and _BOILERPLATE.search(paragraph):
        return "boilerplate"
    if not rules.prose_only:
        return None
    if _LEADERS.search(paragraph):
        return "table_or_rule"
    if count_words(paragraph) < rules.min_words and not _ends_a_sentence(paragraph):
        return "fragment"
    letters = count_letters(paragraph)
    digits = sum(map(str.isdigit, paragraph))
    visible = len(paragraph) - paragraph.count(" ")
    if letters == 0:
        return "no_letters"
    if digits > rules.max_digit_share * visible:
        return "figures"
    if visible - letters - digits > max(_FEW_SYMBOLS, rules.max_symbol_share * visible):
        return "symbols"
    return None


def _ends_a_sentence(paragraph: str) -> bool:
    if _SEMICOLON_END.search(paragraph):
        return 2 * len(_GREEK.findall(paragraph)) > count_letters(paragraph)
    return bool(_SENTENCE_END.search(paragraph))
