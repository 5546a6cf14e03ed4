"""A split of a task as the model takes it, with what reads the model's output: scores, and predictions to submit."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import numpy as np
import torch

from bert_pretrain.finetune import sentences, squad
from bert_pretrain.finetune.options import SourceConfig, TaskConfig
from bert_pretrain.finetune.scores import Scores, best_threshold, sentence_scores, squad_scores
from bert_pretrain.finetune.tasks import Say, read_split

SAMPLE_SEED = 0  # of max_samples: every run of a task sees the same ones
Files = dict[str, str]


@dataclass(frozen=True)
class InputSet:
    """One split: ``inputs`` become the model's by ``batch``; ``read`` turns what comes out into scores and files."""

    split: str
    inputs: list[Any]
    batch: Callable[[list[Any]], dict[str, torch.Tensor]]
    read: Callable[[Any], tuple[Scores, Files]]
    """From logits, in the order of ``inputs``, to scores (none for a test set) and what to submit, by file name."""


def load_split(
    task: TaskConfig,
    source: SourceConfig,
    split: str,
    tokenizer: Any,
    max_length: int,
    max_samples: int | None,
    say: Say,
) -> InputSet | None:
    """Read ``split``, or ``max_samples`` examples of it drawn at random; None where an optional split is not there."""
    found = read_split(task, source, split, say)
    if found is None:
        return None
    rows, where = found
    file = task.splits[split].predictions
    if task.answers is not None:
        training = split == "train"
        questions = _sample(squad.read_questions(rows, where, task.answers.unanswerable, training), max_samples)
        windows = squad.windows(questions, tokenizer, task.answers, max_length)
        read = partial(read_answers, task, questions, windows, file)
        return InputSet(split, windows, squad.batcher(tokenizer, questions, training), read)
    examples = _sample(sentences.read_examples(task, rows, where, not split.startswith("test")), max_samples)
    batch = sentences.batcher(task, tokenizer, max_length)
    return InputSet(split, examples, batch, partial(read_labels, task, examples, file))


def _sample(examples: list[Any], count: int | None) -> list[Any]:
    return examples if count is None or count >= len(examples) else Random(SAMPLE_SEED).sample(examples, count)


def read_labels(
    task: TaskConfig, examples: list[sentences.Example], file: str, logits: np.ndarray
) -> tuple[Scores, Files]:
    """Scores and predictions from logits (examples, labels)."""
    predictions = sentences.predicted(task, logits)
    labels = np.array([example.label for example in examples if example.label is not None])
    scores = sentence_scores(task.metrics, labels, predictions) if len(labels) else {}
    return scores, {file: sentences.submission(task, predictions)}


def read_answers(
    task: TaskConfig,
    questions: list[squad.Question],
    windows: list[squad.Window],
    file: str,
    logits: tuple[np.ndarray, np.ndarray],
) -> tuple[Scores, Files]:
    """Scores and answers from the logits of starts and ends, each (windows, tokens)."""
    assert task.answers is not None
    unanswerable = task.answers.unanswerable
    answers = squad.best_answers(questions, windows, *logits, task.answers)
    golds = {question.key: list(question.answers) for question in questions}
    scores = squad_scores(answers.predictions, golds, unanswerable)
    files = {file: json.dumps(answers.predictions, ensure_ascii=False, indent=1) + "\n"}
    if unanswerable:
        scores |= best_threshold(answers.spans, golds, answers.null_odds)
        files[f"null_odds_{file}"] = json.dumps(answers.null_odds, indent=1) + "\n"
    return scores, files
