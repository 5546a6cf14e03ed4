"""Sentence splitters on ten languages: faults in sentences counted by hand, and speed on one core.

    pip install pysbd syntok blingfire sentence-splitter razdel spacy    # used only here
    python scripts/bench_sentences.py WORK_DIR RESULT.json [LANGUAGE]

WORK_DIR is that of ``prove_languages.py``. Faults a thousand sentences: two sentences not split, and one split within.
A splitter that does not know a language is left out there. With LANGUAGE, prints the faults of ours in it.
"""

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import blingfire
import pysbd
import razdel
import repository_root  # noqa: F401  makes bert_pretrain importable
import sentence_splitter
import sentencex
import spacy
import syntok.segmenter
from gold_sentences import GOLD, Splitter, count_faults, faults, paragraphs
from language_corpora import CORPORA
from results_file import write_result

from data_prep.text.sentences import split_sentences

SPEED_CHARACTERS = 20_000
COLUMNS = (
    "ours",
    "ours, second draw",
    "sentencex",
    "blingfire",
    "sentence-splitter",
    "pysbd",
    "syntok",
    "razdel",
    "spacy",
)


def by_syntok(text: str) -> list[str]:
    """Sentences of syntok, with their spacing."""
    return ["".join(t.spacing + t.value for t in s) for p in syntok.segmenter.process(text) for s in p]


def splitters(language: str) -> dict[str, Splitter]:
    """The libraries that know a language."""
    sentencizer = spacy.blank("en" if language == "ja" else language, config={})  # Japanese needs a dictionary
    sentencizer.add_pipe("sentencizer")
    found: dict[str, Splitter] = {
        "ours": lambda text: split_sentences(text, language),
        "sentencex": lambda text: sentencex.segment(language, text),
        "blingfire": lambda text: blingfire.text_to_sentences(text).split("\n"),
        "spacy": lambda text: [sentence.text for sentence in sentencizer(text).sents],
    }
    if language in pysbd.languages.LANGUAGE_CODES:
        found["pysbd"] = pysbd.Segmenter(language=language, clean=False).segment
    if language in ("de", "es"):
        found["syntok"] = by_syntok
    if language in ("de", "es", "fi", "fr", "ru", "tr"):
        found["sentence-splitter"] = sentence_splitter.SentenceSplitter(language=language).split
    if language == "ru":
        found["razdel"] = lambda text: [sentence.text for sentence in razdel.sentenize(text)]
    return found


def speed(split: Splitter, text: Path) -> float:
    """Megabytes a second, of UTF-8 on one core."""
    lines = text.read_text(encoding="utf-8")[:SPEED_CHARACTERS].split("\n")
    start = time.process_time()
    for line in lines:
        list(split(line))
    return round(sum(len(line.encode()) for line in lines) / 1e6 / (time.process_time() - start), 2)


def show(corpus: str, language: str, text: Path) -> None:
    """Print what ours does wrong: ``||`` where a sentence ends and was not split, ``##`` where one was split within."""
    for paragraph, ends in paragraphs(corpus, text):
        missed, wrong = faults(paragraph, ends, split_sentences(paragraph, language))
        marked, place = "", 0
        for letter in paragraph:
            marked += letter
            place += not letter.isspace()
            if not letter.isspace():
                marked += "||" * (place in missed) + "##" * (place in wrong)
        if missed or wrong:
            print(marked)


def main() -> None:
    """Measure all splitters on all corpora."""
    work, result, *one = sys.argv[1:]
    rows: list[dict[str, Any]] = []
    speeds: list[dict[str, float]] = []
    for corpus in CORPORA:
        text = Path(work) / corpus.name / "corpus.txt"
        if corpus.name not in GOLD or (one and corpus.language not in one):
            continue
        if one:
            show(corpus.name, corpus.language, text)
            continue
        found = splitters(corpus.language)
        counted = {name: count_faults(corpus.name, text, split) for name, split in found.items()}
        counted["ours, second draw"] = count_faults(corpus.name, text, found["ours"], draws=(1,))
        row: dict[str, Any] = {"language": corpus.language, "sentences": counted["ours"][0]}
        rows.append(row | {name: faults_in(*counted[name]) if name in counted else "" for name in COLUMNS})
        speeds.append({name: speed(split, text) for name, split in found.items()})
    if rows:
        fast = {name: [each[name] for each in speeds if name in each] for name in COLUMNS}
        medians = {name: round(statistics.median(values), 2) if values else "" for name, values in fast.items()}
        rows.append({"language": "MB/s, median", "sentences": "", **medians})
        note = "Faults a thousand sentences: not split, or split within. The second draw was read after the rules."
        write_result(Path(result), "Sentence splitters in ten languages, by sentences counted by hand", rows, note)


def faults_in(total: int, missed: int, wrong: int) -> float:
    """Faults a thousand sentences."""
    return round(1000 * (missed + wrong) / total, 1)


if __name__ == "__main__":
    main()
