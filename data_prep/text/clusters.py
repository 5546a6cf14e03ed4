"""Clusters of duplicate documents, for the report: the largest ones, with the beginnings of some of their texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_pretrain.errors import ConfigError
from data_prep.text.duplicates import TextPart, estimated_similarity

_CLUSTERS = 12  # that are shown
_COPIES = 3  # of each, besides the document that is kept
_CHARACTERS = 240  # of a text
_BEFORE = 40  # a copy begins so many characters before it first differs


def describe_clusters(parts: Sequence[TextPart], folder: Path) -> dict[str, Any]:
    """The number of clusters of duplicate documents, and the largest, those with near duplicates first.

    ``folder``: where the duplicates of ``parts`` were found. Of each cluster the kept document and a few of the
    others, near duplicates first: how similar it is to the first by MinHash, and its text from where it differs.
    """
    later, first, exact = _pairs(folder)
    documents, parents = _kept_of(later, first)
    roots, sizes = np.unique(parents, return_counts=True)
    is_near = ~np.isin(documents, exact)
    near = np.zeros(len(roots), dtype=np.int64)
    np.add.at(near, np.searchsorted(roots, parents), is_near)
    chosen = np.lexsort((roots, -sizes, near == 0))[:_CLUSTERS]
    members: dict[int, list[int]] = {}
    for root in roots[chosen].tolist():
        mine = np.flatnonzero(parents == root)
        members[root] = documents[mine[np.argsort(~is_near[mine], kind="stable")[:_COPIES]]].tolist()
    texts = _texts(parts, [number for root, copies in members.items() for number in (root, *copies)])
    rows = []
    for row, (root, copies) in zip(chosen, members.items(), strict=True):
        pairs = np.array([(number, root) for number in copies])
        similarity = estimated_similarity(parts, pairs) if is_near.any() else np.ones(len(pairs))
        rows.append(
            {
                "documents": int(sizes[row]) + 1,
                "near": int(near[row]),
                "kept": texts[root][:_CHARACTERS],
                "copies": [
                    {"similarity": round(float(share), 3), **_difference(texts[root], texts[number])}
                    for number, share in zip(copies, similarity, strict=True)
                ],
            }
        )
    return {"duplicate_clusters": len(roots), "largest_clusters": rows}


def _pairs(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n,) numbers of documents, (n,) of earlier ones that they repeat, and those that are exact duplicates."""
    later, first, exact = ([np.zeros(0, dtype=np.int64)] for _ in range(3))
    for path in sorted(folder.glob("documents_*.npz")):
        with np.load(path) as arrays:
            if "first" not in arrays:  # of an earlier version, in a preparation that goes on
                continue
            later.append(arrays["repeated"])
            first.append(arrays["first"])
            exact.append(arrays["repeated"][arrays["is_exact"]])
    return np.concatenate(later), np.concatenate(first), np.unique(np.concatenate(exact))


def _kept_of(later: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ascending numbers of all repeated documents, and for each the kept document at the head of its cluster."""
    documents = np.unique(later)
    parents = np.full(len(documents), np.iinfo(np.int64).max)
    np.minimum.at(parents, np.searchsorted(documents, later), first)
    while (is_repeated := np.isin(parents, documents)).any():
        parents[is_repeated] = parents[np.searchsorted(documents, parents[is_repeated])]
    return documents, parents


def _texts(parts: Sequence[TextPart], numbers: list[int]) -> dict[int, str]:
    """The texts of some documents."""
    texts: dict[int, str] = {}
    for part in parts:
        mine = [number for number in numbers if 0 <= number - part.first_document < part.documents]
        if mine:
            documents = part.path.read_bytes().split(b"\n\n")
            if len(documents) != part.documents + 1:
                raise ConfigError(f"{part.path} is damaged: it lacks documents; restore it from a copy")
            texts |= {n: documents[n - part.first_document].decode().replace("\n", " ") for n in mine}
    return texts


def _difference(kept: str, copy: str) -> dict[str, Any]:
    """From which character on a copy differs (None: it does not), and its text from shortly before."""
    if copy == kept:
        return {"differs_from": None, "text": copy[:_CHARACTERS]}
    shorter = min(len(kept), len(copy))
    same = next((place for place in range(shorter) if kept[place] != copy[place]), shorter)
    start = max(0, same - _BEFORE)
    return {"differs_from": same, "text": copy[start : start + _CHARACTERS]}
