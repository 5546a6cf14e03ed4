"""Articles of Wikipedia dumps as sentences: markup that is left, what was dropped, and sentences drawn to be read.

    python scripts/check_wikitext.py RESULT.json SENTENCES LANGUAGE=DUMP...

DUMPs are pages-articles dumps, ``.xml`` or ``.xml.bz2``. Draws SENTENCES from all of them with a fixed seed and prints
them with their language, for a person to say which are whole.
"""

import random
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from repository_root import ROOT
from results_file import write_result

from data_prep.options import CleaningConfig, CorpusConfig
from data_prep.sources.cleaning import Dropped
from data_prep.sources.documents import read_piece
from data_prep.sources.pieces import Piece, Span
from data_prep.text.text_parts import document_sentences

MARKUP = re.compile(
    r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}|</?[a-z]+[ />]|'''?|&(?:\w+|#\d+);|-\{|\}-|__[A-Z]+__|\|\s*\w+\s*=|==+|^[*#:;|!]"
    r"|\b(?:thumb|mini|miniatur|vignette|миниатюра|缩略图|right|left|\d+px)\s*\|",
    re.IGNORECASE,
)


def corpus(language: str, dump: Path) -> CorpusConfig:
    """The options of ``corpus=wikipedia``."""
    text, own = (yaml.safe_load((ROOT / f"configs/corpus/{name}.yaml").read_text()) for name in ("text", "wikipedia"))
    rules = yaml.safe_load((ROOT / "configs/cleaning/prose.yaml").read_text()) | own.pop("cleaning")
    options = text | own | {"path": str(dump), "language": language, "cleaning": CleaningConfig(**rules)}
    del options["defaults"]
    return CorpusConfig(**options)


def main() -> None:
    """Read the dumps, print sentences and write the counts."""
    result, count, *dumps = sys.argv[1:]
    rows: list[dict[str, Any]] = []
    found: list[tuple[str, str]] = []
    for language, _, name in (dump.partition("=") for dump in dumps):
        config = corpus(language, Path(name))
        piece = Piece(0, "corpus", config, (Span(Path(name)),), Path(name).stat().st_size)
        dropped, counts, articles = Dropped(texts=[]), Counter[str](), 0
        sentences: list[str] = []
        for document in read_piece(piece, dropped):
            articles += 1
            sentences += document_sentences(document, piece, dropped, counts)
        marked = [sentence for sentence in sentences if MARKUP.search(sentence)]
        for sentence in marked:
            print(f"markup ({language}): {sentence}")
        found += [(language, sentence) for sentence in sentences]
        rows.append(
            {
                "language": language,
                "articles": articles,
                "sentences": len(sentences),
                "with markup": len(marked),
                "dropped for a gap": dropped.counts["sentence_with_gap"],
                "dropped for markup": dropped.counts["markup_left_over"],
            }
        )
    for language, sentence in random.Random(0).sample(found, min(int(count), len(found))):
        print(f"{language}: {sentence}")
    write_result(Path(result), "Articles of Wikipedias as sentences", rows)


if __name__ == "__main__":
    main()
