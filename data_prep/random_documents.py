"""Random documents of a corpus, read, cleaned and split as :mod:`data_prep.preparation` does it.

Duplicates are not looked for. Of a large corpus, as many pieces are opened as documents are asked for, and no more.
"""

import heapq
import random
from collections import Counter
from collections.abc import Iterator

from data_prep.engine.planning import plan_pieces
from data_prep.options import ShowConfig
from data_prep.sources.cleaning import Dropped
from data_prep.sources.documents import Document, read_raw, readable
from data_prep.sources.pieces import Piece
from data_prep.text.text_parts import document_sentences

_PIECE_BYTES = 1_000_000
_SPARE = 4  # times as many are drawn as are shown, since the rules may leave nothing of one


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
