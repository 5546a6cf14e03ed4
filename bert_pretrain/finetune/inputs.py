"""One split of a task: model inputs, their collate function, and the scoring of the model's logits."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any

import numpy as np
import torch

from bert_pretrain.finetune import entities, sentences, squad
from bert_pretrain.finetune.options import FinetuneConfig, TaskConfig
from bert_pretrain.finetune.scores import Scores, best_threshold, sentence_scores, squad_scores, tag_scores
from bert_pretrain.finetune.tasks import Log, read_split

SUBSET_SEED = 0  # of training.max_train_samples: every run of a task trains on the same subset
Files = dict[str, str]


@dataclass(frozen=True)
class InputSet:
    """One split."""

    split: str
    inputs: list[Any]
    collate: Callable[[list[Any]], dict[str, torch.Tensor]]
    fingerprint: str
    """A hash of the rows."""
    score: Callable[[Any], tuple[Scores, Files]]
    """From logits, in the order of ``inputs``, to scores (empty for a test set) and prediction files by name."""


def load_split(config: FinetuneConfig, split: str, tokenizer: Any, log: Log) -> InputSet | None:
    """Read and tokenize ``split``; None if it is optional and absent."""
    task, training = config.task, config.training
    found = read_split(task, config.data, split, log)
    if found is None:
        return None
    rows, where = found
    is_train, file = split == "train", task.splits[split].predictions
    limit = training.max_train_samples if is_train else None
    fingerprint = hashlib.blake2b(json.dumps(rows, default=str).encode(), digest_size=16).hexdigest()
    if task.answers is not None:
        questions = _subset(squad.read_questions(rows, where, task.answers.unanswerable, is_train), limit)
        windows = squad.windows(questions, tokenizer, task.answers, training.max_length)
        score = partial(score_answers, task, questions, windows, file)
        return InputSet(split, windows, squad.make_collate(tokenizer, questions, is_train), fingerprint, score)
    if task.kind == "tags":
        tagged = _subset(entities.read_sentences(task, rows, where, not split.startswith("test")), limit)
        entities.check_tags(tagged, task.labels, where)
        parts = entities.windows(tagged, tokenizer, training.max_length)
        score = partial(score_tags, task, tagged, parts, file)
        return InputSet(split, parts, entities.make_collate(tokenizer, tagged, task.labels), fingerprint, score)
    examples = _subset(sentences.read_examples(task, rows, where, not split.startswith("test")), limit)
    collate = sentences.make_collate(task, tokenizer, training.max_length)
    return InputSet(split, examples, collate, fingerprint, partial(score_labels, task, examples, file))


def with_labels(config: FinetuneConfig, log: Log) -> FinetuneConfig:
    """``config`` with the labels of a task of tags: those of its training set."""
    if config.task.kind != "tags" or config.task.labels:
        return config
    found = read_split(config.task, config.data, "train", log)
    assert found is not None, "a training set is required"
    labels = entities.tags_of(entities.read_sentences(config.task, *found, labelled=True))
    log(f"{config.task.name}: {len(labels)} tags, {', '.join(labels)}")
    return replace(config, task=replace(config.task, labels=labels))


def _subset(examples: list[Any], count: int | None) -> list[Any]:
    return examples if count is None or count >= len(examples) else Random(SUBSET_SEED).sample(examples, count)


def score_labels(
    task: TaskConfig, examples: list[sentences.Example], file: str, logits: np.ndarray
) -> tuple[Scores, Files]:
    """Scores and predictions from logits (examples, labels)."""
    predictions = sentences.predicted(task, logits)
    labels = np.array([example.label for example in examples if example.label is not None])
    scores = sentence_scores(task.metrics, labels, predictions) if len(labels) else {}
    return scores, {file: sentences.submission(task, predictions)}


def score_tags(
    task: TaskConfig,
    tagged: list[entities.Sentence],
    parts: list[entities.Window],
    file: str,
    logits: np.ndarray,
) -> tuple[Scores, Files]:
    """Scores and tags from logits (windows, tokens, labels)."""
    predictions = entities.predicted(tagged, parts, logits, task.labels)
    golds = [list(sentence.tags) for sentence in tagged if sentence.tags is not None]
    scores = tag_scores(task.metrics, golds, predictions) if len(golds) == len(tagged) else {}
    return scores, {file: entities.submission(tagged, predictions)}


def score_answers(
    task: TaskConfig,
    questions: list[squad.Question],
    windows: list[squad.Window],
    file: str,
    logits: tuple[np.ndarray, np.ndarray],
) -> tuple[Scores, Files]:
    """Scores and answers from start and end logits, each (windows, tokens)."""
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
