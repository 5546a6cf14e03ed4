"""SQuAD: splits long contexts into windows, and decodes answers as spans of the original text.

As in Google's BERT (2018), windows start ``doc_stride`` tokens apart, and the answer is the span with the largest sum
of start and end logits over all windows. Two differences: the answer text is sliced from the context by character
offsets instead of joined from word pieces; and a span may come from any window, whereas Google's code accepts a start
only in the window with the most context around it and so loses answers that end outside that window.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bert_pretrain.errors import ConfigError
from bert_pretrain.finetune.options import AnswerConfig
from bert_pretrain.finetune.tasks import Row

NO_SPAN = -1e9  # score if no span is possible: below any other, and finite for JSON


@dataclass(frozen=True)
class Question:
    """A question and its context."""

    key: str
    text: str
    context: str
    answers: tuple[str, ...]
    """Gold answers; empty if the question has no answer."""
    answer_start: int
    """Character offset of the first answer in the context; -1 if there is none."""


@dataclass(frozen=True)
class Window:
    """One model input: a question and a part of its context."""

    question: int
    """Index of the question."""
    inputs: dict[str, np.ndarray]
    """The tokenizer's output, each (length,)."""
    offsets: np.ndarray
    """(length, 2): start and end (exclusive) of each token in the context, in characters; -1 outside the context."""


def read_questions(rows: list[Row], where: str, unanswerable: bool, training: bool) -> list[Question]:
    """Convert ``rows``. Raises ``ConfigError`` for missing fields or answers, and for wrong answer offsets."""
    if not rows:
        raise ConfigError(f"{where} has no questions")
    questions: dict[str, Question] = {}
    for number, row in enumerate(rows, 1):
        missing = [name for name in ("id", "question", "context", "answers") if name not in row]
        if missing:
            raise ConfigError(f"{where}: question {number} has no {missing[0]!r}, only {', '.join(row)}")
        if row["id"] in questions:
            raise ConfigError(f"{where} has two questions with the id {row['id']!r}; ids must be unique")
        questions[row["id"]] = _question(row, f"{where}: question {row['id']!r}", unanswerable, training)
    return list(questions.values())


def _question(row: Row, where: str, unanswerable: bool, training: bool) -> Question:
    answers = row["answers"]
    if isinstance(answers, dict):  # the hub's columns
        answers = [
            {"text": text, "answer_start": start}
            for text, start in zip(answers["text"], answers["answer_start"], strict=True)
        ]
    if row.get("is_impossible"):
        answers = []
    if not answers and not (unanswerable and row.get("is_impossible", True)):
        raise ConfigError(f"{where} has no answer; only task=squad_v2 allows this, with is_impossible: true")
    if any(not isinstance(answer, dict) or not answer.get("text") for answer in answers):
        raise ConfigError(f"{where} has an answer without text")
    start = -1
    if answers and training:
        start, text = answers[0].get("answer_start", -1), answers[0]["text"]
        if start < 0 or row["context"][start : start + len(text)] != text:
            raise ConfigError(f"{where}: the answer {text!r} is not at answer_start {start} of its context")
    texts = tuple(answer["text"] for answer in answers)
    return Question(row["id"], row["question"].strip(), row["context"], texts, start)


def windows(questions: list[Question], tokenizer: Any, config: AnswerConfig, max_length: int) -> list[Window]:
    """All windows of all questions, in order, each at most ``max_length`` tokens."""
    texts: list[str] = []
    by_length = defaultdict(list)
    encoded = tokenizer([q.text for q in questions], add_special_tokens=False, return_offsets_mapping=True)
    for number, offsets in enumerate(encoded["offset_mapping"]):
        kept = offsets[: config.max_query_length]
        texts.append(questions[number].text[: kept[-1][1] if kept else 0])
        by_length[len(kept)].append(number)
    special = tokenizer.num_special_tokens_to_add(pair=True)
    found: list[list[Window]] = [[] for _ in questions]
    for length, numbers in by_length.items():  # the tokenizer takes the overlap, which depends on the question's length
        room = max_length - length - special
        if room < 2:
            raise ConfigError(
                f"training.max_length is {max_length}, which leaves no room for context after a question of {length} "
                "tokens; give a larger one, or a smaller task.answers.max_query_length"
            )
        encoded = tokenizer(
            [texts[number] for number in numbers],
            [questions[number].context for number in numbers],
            truncation="only_second",
            max_length=max_length,
            stride=max(0, room - config.doc_stride),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        for row, sample in enumerate(encoded["overflow_to_sample_mapping"]):
            found[numbers[sample]].append(_window(encoded, row, numbers[sample]))
    return [window for of_one in found for window in of_one]


def _window(encoded: Any, row: int, question: int) -> Window:
    in_context = np.array([part == 1 for part in encoded.sequence_ids(row)])
    offsets = np.where(in_context[:, None], np.array(encoded["offset_mapping"][row]), -1).astype(np.int32)
    inputs = {
        name: np.array(encoded[name][row], dtype=np.int32)
        for name in ("input_ids", "token_type_ids", "attention_mask")
        if name in encoded
    }
    return Window(question, inputs, offsets)


def span(window: Window, question: Question) -> tuple[int, int]:
    """First and last token of the answer in ``window``; (0, 0), the [CLS] token, unless all of it is in the window."""
    start = question.answer_start
    if start < 0:
        return 0, 0
    end = start + len(question.answers[0])
    inside = np.flatnonzero((window.offsets[:, 1] > start) & (window.offsets[:, 0] < end) & (window.offsets[:, 0] >= 0))
    if not len(inside):
        return 0, 0
    context = window.offsets[window.offsets[:, 0] >= 0]
    if context[0, 0] > start or context[-1, 1] < end:
        return 0, 0
    return int(inside[0]), int(inside[-1])


def make_collate(tokenizer: Any, questions: list[Question], training: bool) -> Any:
    """A collate function: ids (windows, longest of them), and if ``training`` the start and end positions."""

    def collate(chosen: list[Window]) -> dict[str, torch.Tensor]:
        names = chosen[0].inputs
        padded = tokenizer.pad({name: [w.inputs[name].tolist() for w in chosen] for name in names}, return_tensors="pt")
        if training:
            spans = [span(window, questions[window.question]) for window in chosen]
            padded["start_positions"], padded["end_positions"] = torch.tensor(spans).T
        return dict(padded)

    return collate


@dataclass(frozen=True)
class Answers:
    """A model's answers, by question id."""

    predictions: dict[str, str]
    """The answers to submit; empty for "no answer"."""
    spans: dict[str, str]
    """The best span of each question, without a threshold."""
    null_odds: dict[str, float]
    """Score of "no answer" minus score of the best span."""


def best_answers(
    questions: list[Question], all_windows: list[Window], starts: np.ndarray, ends: np.ndarray, config: AnswerConfig
) -> Answers:
    """Decode answers from start and end logits, each (windows, tokens). The logits of padding are ignored."""
    best = [(NO_SPAN, "") for _ in questions]
    null = np.full(len(questions), np.inf)
    for window, start, end in zip(all_windows, starts, ends, strict=True):
        number = window.question
        null[number] = min(null[number], float(start[0]) + float(end[0]))
        score, first, last = _best_span(window, start, end, config)
        if score > best[number][0]:
            text = questions[number].context[window.offsets[first, 0] : window.offsets[last, 1]]
            best[number] = (score, text)
    keys = [question.key for question in questions]
    spans = {key: text for key, (_, text) in zip(keys, best, strict=True)}
    odds = {key: float(none - score) for key, none, (score, _) in zip(keys, null, best, strict=True)}
    unanswered = {key for key in keys if config.unanswerable and odds[key] > config.null_threshold}
    return Answers({key: "" if key in unanswered else spans[key] for key in keys}, spans, odds)


def _best_span(window: Window, start: np.ndarray, end: np.ndarray, config: AnswerConfig) -> tuple[float, int, int]:
    """Score, first and last token of the best span among the ``n_best`` starts and ends; -inf if none is possible."""
    length = len(window.offsets)
    context = window.offsets[:, 0] >= 0
    firsts = np.where(context, start[:length], -np.inf)
    lasts = np.where(context, end[:length], -np.inf)
    firsts_at = np.argsort(-firsts, kind="stable")[: config.n_best]
    lasts_at = np.argsort(-lasts, kind="stable")[: config.n_best]
    tokens = lasts_at[None, :] - firsts_at[:, None] + 1
    scores = firsts[firsts_at].astype(np.float64)[:, None] + lasts[lasts_at][None, :]
    scores = np.where((tokens >= 1) & (tokens <= config.max_answer_length), scores, -np.inf)
    row, column = np.unravel_index(scores.argmax(), scores.shape)
    return float(scores[row, column]), int(firsts_at[row]), int(lasts_at[column])
