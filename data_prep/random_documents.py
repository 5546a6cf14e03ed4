"""Random documents of a corpus, read, cleaned and split as by :mod:`data_prep.preparation`, duplicates included."""

import heapq
import random
from collections import Counter
from collections.abc import Iterator

from data_prep.engine.planning import plan_pieces
from data_prep.options import ShowConfig
from data_prep.sources.cleaning import Dropped
from data_prep.sources.documents import read_raw, without_markup
from data_prep.text.text_parts import document_sentences

_PIECE_BYTES = 1_000_000
_SPARE = 4  # documents drawn for each one wanted, since the rules may drop all of one


def random_documents(config: ShowConfig, dropped: Dropped) -> Iterator[tuple[str, list[str]]]:
    """Non-empty documents in random order: their names and clean sentences.

    Of a large corpus, at most ``config.documents`` pieces are read.
    """
    rng = random.Random(config.seed)
    pieces = plan_pieces({"corpus": config.corpus}, _PIECE_BYTES)
    opened = rng.sample(pieces, min(config.documents, len(pieces)))
    raw_documents = ((piece, raw) for piece in opened for raw in read_raw(piece, dropped))
    numbered = ((rng.random(), number, piece, raw) for number, (piece, raw) in enumerate(raw_documents))
    for _, _, piece, raw in heapq.nsmallest(_SPARE * config.documents, numbered):
        for document in without_markup(raw, dropped):
            sentences = document_sentences(document, piece, dropped, Counter())
            if sentences:
                yield document.name, sentences
