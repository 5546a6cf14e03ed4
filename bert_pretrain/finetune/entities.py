"""Tags of words, such as named entities: CoNLL files to windows to batches, and logits to tags.

As in Devlin et al. 2018 (arXiv 1810.04805, section 5.3), the first word piece of a word stands for it; the others
have no label. A sentence that is too long is cut between words into several windows, so that every word is scored
once. Scores are seqeval's, which are those of the conlleval script: an entity counts if all its words and its type
are right.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bert_pretrain.errors import ConfigError
from bert_pretrain.finetune.options import TaskConfig
from bert_pretrain.finetune.tasks import ALLOWED, TAG, Row

_UNLABELLED = -100  # what torch's cross entropy ignores


@dataclass(frozen=True)
class Sentence:
    """One sentence."""

    words: tuple[str, ...]
    tags: tuple[str, ...] | None
    """A tag a word; None in a test set without tags."""


@dataclass(frozen=True)
class Window:
    """One model input: some words of a sentence, in order."""

    sentence: int
    """Index of the sentence."""
    first_word: int
    inputs: dict[str, list[int]]
    """The tokenizer's output, each (length,)."""
    places: list[int]
    """For each word, the position of its first piece; -1 if it has none."""


def read_sentences(task: TaskConfig, rows: list[Row], where: str, labelled: bool) -> list[Sentence]:
    """Convert ``rows``. Raises ``ConfigError`` for missing columns and unequal lengths."""
    if not rows:
        raise ConfigError(f"{where} has no sentences")
    sentences = []
    for number, row in enumerate(rows, 1):
        words, tags = row.get(task.columns[0]), row.get(task.label_column)
        if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
            raise ConfigError(f"{where}: sentence {number} has no {task.columns[0]!r}, a list of words")
        if not isinstance(tags, list) and (labelled or tags is not None):
            raise ConfigError(f"{where}: sentence {number} has no {task.label_column!r}, a list of tags")
        if tags is not None and len(tags) != len(words):
            found = f"{len(words)} words and {len(tags)} tags"
            raise ConfigError(f"{where}: sentence {number} has {found}; allowed: a tag for each word")
        bad = next((tag for tag in tags or () if not (isinstance(tag, str) and TAG.fullmatch(tag))), None)
        if bad is not None:
            raise ConfigError(f"{where}: sentence {number} has the tag {bad!r}; allowed: {ALLOWED}")
        sentences.append(Sentence(tuple(words), None if tags is None else tuple(tags)))
    return sentences


def tags_of(sentences: list[Sentence]) -> list[str]:
    """All tags that occur: O, then by type."""
    found = {tag for sentence in sentences for tag in sentence.tags or ()} | {"O"}
    return sorted(found, key=lambda tag: (tag != "O", tag[2:], tag))


def check_tags(sentences: list[Sentence], labels: list[str], where: str) -> None:
    """Raise ``ConfigError`` for a tag that the training set does not have."""
    if unknown := sorted(set(tags_of(sentences)) - set(labels)):
        known = f"those of the training set, {', '.join(labels)}"
        raise ConfigError(f"{where} has the tag {unknown[0]!r}; allowed: {known}")


def windows(sentences: list[Sentence], tokenizer: Any, max_length: int) -> list[Window]:
    """All windows of all sentences, in order, each at most ``max_length`` tokens."""
    room = max_length - tokenizer.num_special_tokens_to_add()
    whole = tokenizer([list(s.words) for s in sentences], is_split_into_words=True, add_special_tokens=False)
    parts: list[tuple[int, int, int]] = []  # sentence, first word, end
    for number, sentence in enumerate(sentences):
        pieces = np.bincount([w for w in whole.word_ids(number) if w is not None], minlength=len(sentence.words))
        first = used = 0
        for word, count in enumerate(pieces):
            if used and used + count > room:
                parts.append((number, first, word))
                first, used = word, 0
            used += int(count)
        parts.append((number, first, len(sentence.words)))
    texts = [list(sentences[number].words[first:end]) for number, first, end in parts]
    encoded = tokenizer(texts, is_split_into_words=True, truncation=True, max_length=max_length)
    names = [name for name in ("input_ids", "token_type_ids", "attention_mask") if name in encoded]
    found = []
    for row, (number, first, end) in enumerate(parts):
        of_words = encoded.word_ids(row)
        places = [of_words.index(word) if word in of_words else -1 for word in range(end - first)]
        found.append(Window(number, first, {name: encoded[name][row] for name in names}, places))
    return found


def make_collate(
    tokenizer: Any, sentences: list[Sentence], labels: list[str]
) -> Callable[[list[Window]], dict[str, torch.Tensor]]:
    """A collate function: ids and labels (windows, longest of them)."""
    ids = {label: number for number, label in enumerate(labels)}

    def collate(chosen: list[Window]) -> dict[str, torch.Tensor]:
        inputs = {name: [window.inputs[name] for window in chosen] for name in chosen[0].inputs}
        padded = dict(tokenizer.pad(inputs, return_tensors="pt"))
        if all(sentences[window.sentence].tags is not None for window in chosen):
            target = torch.full_like(padded["input_ids"], _UNLABELLED)
            for row, window in enumerate(chosen):
                tags = sentences[window.sentence].tags or ()
                for place, tag in zip(window.places, tags[window.first_word :], strict=False):
                    if place >= 0:
                        target[row, place] = ids[tag]
            padded["labels"] = target
        return padded

    return collate


def predicted(
    sentences: list[Sentence], all_windows: list[Window], logits: np.ndarray, labels: list[str]
) -> list[list[str]]:
    """The tag of every word from logits (windows, tokens, labels). A word without a piece is O."""
    found = [["O"] * len(sentence.words) for sentence in sentences]
    for window, scores in zip(all_windows, logits, strict=True):
        best = scores.argmax(-1)
        for number, place in enumerate(window.places, window.first_word):
            if place >= 0:
                found[window.sentence][number] = labels[best[place]]
    return found


def submission(sentences: list[Sentence], predictions: list[list[str]]) -> str:
    """A word and its tag a line, and an empty line between sentences, as in a CoNLL file."""
    blocks = (zip(sentence.words, tags, strict=True) for sentence, tags in zip(sentences, predictions, strict=True))
    return "\n\n".join("\n".join(f"{word}\t{tag}" for word, tag in block) for block in blocks) + "\n"
