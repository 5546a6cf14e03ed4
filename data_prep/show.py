"""Entry point: random documents of a corpus as the tokenizer would get them, to be read before anything is prepared.

    python -m data_prep.show corpus=wikipedia corpus.path=dump.xml.bz2

They are read, cleaned and split as :mod:`data_prep.prepare` does it with the same ``corpus`` options; duplicates are
not looked for. Of a large corpus, as many pieces are opened as documents are asked for, and no more.
"""

import heapq
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from bert_pretrain.config_loading import entry_point
from bert_pretrain.errors import ConfigError, require
from data_prep.corpus import CorpusConfig, no_text
from data_prep.engine.planning import plan_pieces
from data_prep.sources.cleaning import Dropped
from data_prep.sources.documents import Document, read_raw, readable
from data_prep.sources.pieces import Piece
from data_prep.text.text_parts import document_sentences

_PIECE_BYTES = 1_000_000
_SPARE = 4  # times as many are drawn as are shown, since the rules may leave nothing of one


@dataclass
class ShowConfig:
    """The options of ``configs/show.yaml``."""

    corpus: CorpusConfig
    documents: int
    sentences: int | None
    seed: int

    def __post_init__(self) -> None:
        require(self.documents >= 1, "documents", self.documents, "1 or more")
        require(self.sentences is None or self.sentences >= 1, "sentences", self.sentences, "null, or 1 or more")


@entry_point("show", ShowConfig)
def main(config: ShowConfig) -> None:
    """Print the documents, a sentence a line, and what the rules dropped on the way to them."""
    dropped = Dropped()
    shown = 0
    for name, sentences in random_documents(config, dropped):
        print(f"=== {name} ({len(sentences):,} sentences)")
        print("\n".join(sentences[: config.sentences]), end="\n\n")
        shown += 1
        if shown == config.documents:
            break
    if shown == 0:
        raise ConfigError(no_text(config.corpus, dropped.counts))
    for rule, count in sorted(dropped.counts.items()):
        print(f"dropped, {rule.replace('_', ' ')}: {count:,}; such as {dropped.samples[rule][0]!r}")


def random_documents(config: ShowConfig, dropped: Dropped) -> Iterator[tuple[str, list[str]]]:
    """Documents that are not empty, in random order: their names and clean sentences."""
    rng = random.Random(config.seed)
    pieces = plan_pieces({"corpus": config.corpus}, _PIECE_BYTES)
    opened = rng.sample(pieces, min(config.documents, len(pieces)))
    numbered = ((rng.random(), number, piece, raw) for number, (piece, raw) in enumerate(_raw(opened, dropped)))
    for _, _, piece, raw in heapq.nsmallest(_SPARE * config.documents, numbered):
        for document in readable(raw, dropped):
            sentences = document_sentences(document, piece, dropped, Counter())
            if sentences:
                yield document.name, sentences


def _raw(pieces: list[Piece], dropped: Dropped) -> Iterator[tuple[Piece, Document]]:
    for piece in pieces:
        for document in read_raw(piece, dropped):
            yield piece, document


if __name__ == "__main__":
    main()
