"""Sentence splitters on real text: speed on one core, and errors that can be counted automatically.

    pip install syntok blingfire          # used only here
    python scripts/bench_sentences.py RESULT.json TEXT...

TEXTs have a paragraph a line. Errors in a thousand sentences: one that begins with a lower-case letter (split within a
sentence); one that ends in an abbreviation such as "Mr."; one with a full stop and a common first word inside (two
sentences not split). And of twelve paragraphs split by hand, how many are split correctly.
"""

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import blingfire
import sentencex
import syntok.segmenter
from results_file import write_result

from data_prep.text.sentences import split_sentences

ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|Prof|Rev|Capt|Col|Gen|Lt|Hon|vs|etc|e\.g|i\.e|cf|No|Vol|Fig|[A-Z])\.$")
TOGETHER = re.compile(r"[a-z]{3}[.!?] (?:The|He|She|It|They|But|And|In|This|There|When|If|We|You|A) [a-z]")
BY_HAND = [
    ["Dr. Smith paid 3.5 dollars.", "He left."],
    ["It was late, e.g. at night.", "Nobody came."],
    ["The U.S. Army arrived in 1917.", "It stayed."],
    ["He said: “Go home!”", "Nobody went."],
    ["Is it true?", "Yes.", "It is."],
    ["J. R. R. Tolkien wrote it.", "C. S. Lewis read it."],
    ["See p. 55 of vol. 3 for more.", "Others disagree."],
    ["Wait...", "He stopped."],
    ["At 5 p.m. Mr. Jones went to the bank.", "It was closed."],
    ["The cat sat on the mat (it was red).", "The dog did not."],
    ["Smith Inc. was sold in Jan. 1999.", "Its owner, Mrs. A. Brown, died."],
    ["She works at Yahoo! in London.", "He works nowhere."],
]


def by_syntok(text: str) -> list[str]:
    """Sentences of syntok, with their spacing."""
    return ["".join(t.spacing + t.value for t in s).strip() for p in syntok.segmenter.process(text) for s in p]


def measure(split: Callable[[str], list[str]], paragraphs: list[str]) -> dict[str, float]:
    """Speed and errors of one splitter."""
    start = time.process_time()
    sentences = [sentence for paragraph in paragraphs for sentence in split(paragraph)]
    seconds = time.process_time() - start
    thousand = len(sentences) / 1000
    right = sum(list(split(" ".join(expected))) == expected for expected in BY_HAND)
    return {
        "megabytes_a_second": round(sum(map(len, paragraphs)) / 1e6 / seconds, 2),
        "sentences": len(sentences),
        "begin_with_a_small_letter": round(sum(sentence[:1].islower() for sentence in sentences) / thousand, 2),
        "end_in_an_abbreviation": round(sum(bool(ABBREVIATION.search(s)) for s in sentences) / thousand, 2),
        "two_left_together": round(sum(bool(TOGETHER.search(sentence)) for sentence in sentences) / thousand, 2),
        "right_of_12_by_hand": right,
    }


def main() -> None:
    """Measure all splitters on all texts."""
    splitters: dict[str, Callable[[str], list[str]]] = {
        "ours: sentencex, then the rule for speech": lambda text: list(split_sentences(text, "en")),
        "sentencex": lambda text: [part.strip() for part in sentencex.segment("en", text)],
        "blingfire": lambda text: blingfire.text_to_sentences(text).split("\n"),
        "syntok": by_syntok,
    }
    rows = []
    for name in sys.argv[2:]:
        lines = Path(name).read_text(encoding="utf-8-sig").splitlines()
        paragraphs = [" ".join(line.split()) for line in lines if line.strip()]
        rows += [{"text": Path(name).name, "library": key, **measure(f, paragraphs)} for key, f in splitters.items()]
    note = "Errors a thousand sentences."
    write_result(Path(sys.argv[1]), "Sentence splitters on one core", rows, note)


if __name__ == "__main__":
    main()
