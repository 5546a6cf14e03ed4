"""The text stage: a piece of a corpus -> a text file of clean sentences, and the keys to find duplicates by.

``text/NNNNNN.txt`` has one sentence a line and a blank line after each document. ``NNNNNN.keys.npz`` beside it has the
arrays of :func:`data_prep.text.duplicates.part_keys`. Large compressed files are first split into chunks.
"""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from bert_pretrain.files.file_system import new_file
from data_prep.options import DuplicateConfig
from data_prep.sources.cleaning import PLACEHOLDER, Dropped, clean_paragraphs
from data_prep.sources.documents import Document, read_piece, read_raw, write_chunk
from data_prep.sources.pieces import Piece
from data_prep.sources.user_rule import apply_rule
from data_prep.text.duplicates import part_keys
from data_prep.text.sentences import split_sentences


def split_file(piece: Piece, folder: Path, chunk_bytes: int) -> dict[str, Any]:
    """Split a large compressed file into chunks ``<piece>_NNNNN.json.zst``; returns their names and sizes."""
    dropped = Dropped()
    names: list[str] = []
    sizes: list[int] = []
    documents: list[Document] = []
    size = 0

    def flush() -> None:
        names.append(f"{piece.name}_{len(names):05d}.json.zst")
        sizes.append(size)
        with new_file(folder / names[-1]) as temporary:
            temporary.write_bytes(zstandard.ZstdCompressor(level=3).compress(write_chunk(documents)))
        documents.clear()

    for document in read_raw(piece, dropped):
        documents.append(document)
        size += sum(map(len, document.paragraphs))
        if size >= chunk_bytes:
            flush()
            size = 0
    if documents:
        flush()
    return {"chunks": names, "sizes": sizes, **dropped.as_record()}


def write_text_part(piece: Piece, folder: Path, duplicates: DuplicateConfig, keep_dropped: bool) -> dict[str, Any]:
    """Read, clean and split one piece; write its text file and its keys; return the counts.

    ``keep_dropped``: also write what the rules dropped, as JSON lines ``[rule, text]``.
    """
    dropped = Dropped(texts=[] if keep_dropped else None)
    counts = Counter(dict.fromkeys(("documents_read", "documents", "paragraphs", "sentences", "characters"), 0))
    by_source: dict[str, dict[str, int]] = {}
    documents: list[list[str]] = []
    for document in read_piece(piece, dropped):
        counts["documents_read"] += 1
        sentences = document_sentences(document, piece, dropped, counts)
        if not sentences:
            continue
        characters = sum(map(len, sentences))
        counts.update(documents=1, sentences=len(sentences), characters=characters)
        source = by_source.setdefault(document.source, {"documents": 0, "characters": 0})
        source["documents"] += 1
        source["characters"] += characters
        documents.append(sentences)
    keys = part_keys(documents, duplicates, piece.config.drop_repeated_sentences)
    text = "".join("\n".join(sentences) + "\n\n" for sentences in documents).encode()
    with new_file(folder / f"{piece.name}.txt") as temporary:
        temporary.write_bytes(text)
    with new_file(folder / f"{piece.name}.keys.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **keys)
    if dropped.texts is not None:
        with new_file(folder / f"{piece.name}.dropped.jsonl") as temporary:
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in dropped.texts]
            temporary.write_text("".join(lines), encoding="utf-8")
    return {**counts, "by_source": by_source, **dropped.as_record()}


def write_dropped(folder: Path, out_dir: Path) -> None:
    """Write what the rules dropped of all pieces to ``out_dir/RULE.txt``, with a blank line between two texts."""
    shutil.rmtree(out_dir, ignore_errors=True)
    out_dir.mkdir()
    for part in sorted(folder.glob("*.dropped.jsonl")):
        texts: dict[str, list[str]] = {}
        with open(part, encoding="utf-8") as rows:
            for rule, text in map(json.loads, rows):
                texts.setdefault(rule, []).append(f"{text}\n\n")
        for rule, of_rule in texts.items():
            with open(out_dir / f"{rule}.txt", "a", encoding="utf-8") as file:
                file.writelines(of_rule)


def document_sentences(document: Document, piece: Piece, dropped: Dropped, counts: Counter[str]) -> list[str]:
    """The clean sentences of one document; none if it is dropped."""
    corpus = piece.config
    if corpus.rule is not None:
        changed = apply_rule(document, corpus.rule, dropped)
        if changed is None:
            return []
        document = changed
    paragraphs = clean_paragraphs(document.paragraphs, corpus.cleaning, corpus.language, dropped)
    if not document.needs_splitting:
        return paragraphs
    counts["paragraphs"] += len(paragraphs)
    kept = []
    for paragraph in paragraphs:
        for sentence in split_sentences(paragraph, corpus.language):
            if PLACEHOLDER in sentence:
                dropped.add("sentence_with_gap", sentence)
            else:
                kept.append(sentence)
    return kept
