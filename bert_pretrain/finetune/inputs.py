"""One split of a task: model inputs, their collate function, and the scoring of the model's logits."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
import torch

from bert_pretrain.finetune import entities, sentences, squad
from bert_pretrain.finetune.options import FinetuneConfig
from bert_pretrain.finetune.scores import Scores, best_threshold, sentence_scores, squad_scores, tag_scores
from bert_pretrain.finetune.tasks import Log, Row, read_split

SUBSET_SEED = 0  # of training.max_train_samples: every run of a task trains on the same subset
Files = dict[str, str]
Collate = Callable[[list[Any]], dict[str, torch.Tensor]]
Score = Callable[[Any], tuple[Scores, Files]]
"""From logits, in the order of the inputs, to scores (empty for a test set) and prediction files by name."""
Parts = tuple[list[Any], Collate, Score]
"""Of an ``InputSet``: its inputs, their collate function, their scoring."""


@dataclass(frozen=True)
class InputSet:
    """One split."""

    split: str
    fingerprint: str
    """A hash of the rows."""
    inputs: list[Any]
    collate: Collate
    score: Score


def load_split(config: FinetuneConfig, split: str, tokenizer: Any, log: Log) -> InputSet | None:
    """Read and tokenize ``split``; None if it is optional and absent."""
    found = read_split(config.task, config.data, split, log)
    if found is None:
        return None
    fingerprint = hashlib.blake2b(json.dumps(found[0], default=str).encode(), digest_size=16).hexdigest()
    of_kind = {"squad": answer_inputs, "tags": tag_inputs}.get(config.task.kind, label_inputs)
    return InputSet(split, fingerprint, *of_kind(config, split, tokenizer, *found))


def with_labels(config: FinetuneConfig, log: Log) -> FinetuneConfig:
    """``config`` with the labels of a task of tags: those of its training set."""
    if config.task.kind != "tags" or config.task.labels:
        return config
    found = read_split(config.task, config.data, "train", log)
    assert found is not None, "a training set is required"
    labels = entities.tags_of(entities.read_sentences(config.task, *found, labelled=True))
    log(f"{config.task.name}: {len(labels)} tags, {', '.join(labels)}")
    return replace(config, task=replace(config.task, labels=labels))


def _subset(config: FinetuneConfig, split: str, examples: list[Any]) -> list[Any]:
    """Those of ``examples`` that are used."""
    count = config.training.max_train_samples if split == "train" else None
    return examples if count is None or count >= len(examples) else Random(SUBSET_SEED).sample(examples, count)


def label_inputs(config: FinetuneConfig, split: str, tokenizer: Any, rows: list[Row], where: str) -> Parts:
    """Sentences or pairs of them."""
    task, file = config.task, config.task.splits[split].predictions
    labelled = not split.startswith("test")
    examples = _subset(config, split, sentences.read_examples(task, rows, where, labelled))

    def score(logits: np.ndarray) -> tuple[Scores, Files]:  # (examples, labels)
        predictions = sentences.predicted(task, logits)
        labels = np.array([example.label for example in examples if example.label is not None])
        scores = sentence_scores(task.metrics, labels, predictions) if len(labels) else {}
        return scores, {file: sentences.submission(task, predictions)}

    return examples, sentences.make_collate(task, tokenizer, config.training.max_length), score


def tag_inputs(config: FinetuneConfig, split: str, tokenizer: Any, rows: list[Row], where: str) -> Parts:
    """Windows of tagged sentences."""
    task, file = config.task, config.task.splits[split].predictions
    labelled = not split.startswith("test")
    tagged = _subset(config, split, entities.read_sentences(task, rows, where, labelled))
    entities.check_tags(tagged, task.labels, where)
    windows = entities.windows(tagged, tokenizer, config.training.max_length)

    def score(logits: np.ndarray) -> tuple[Scores, Files]:  # (windows, tokens, labels)
        predictions = entities.predicted(tagged, windows, logits, task.labels)
        golds = [list(sentence.tags) for sentence in tagged if sentence.tags is not None]
        scores = tag_scores(task.metrics, golds, predictions) if len(golds) == len(tagged) else {}
        return scores, {file: entities.submission(tagged, predictions)}

    return windows, entities.make_collate(tokenizer, tagged, task.labels), score


def answer_inputs(config: FinetuneConfig, split: str, tokenizer: Any, rows: list[Row], where: str) -> Parts:
    """Windows of questions and their contexts."""
    options = config.task.answers
    file = config.task.splits[split].predictions
    is_train = split == "train"
    assert options is not None
    questions = _subset(config, split, squad.read_questions(rows, where, options.unanswerable, is_train))
    windows = squad.windows(questions, tokenizer, options, config.training.max_length)

    def score(logits: tuple[np.ndarray, np.ndarray]) -> tuple[Scores, Files]:  # starts and ends: (windows, tokens)
        answers = squad.best_answers(questions, windows, *logits, options)
        golds = {question.key: list(question.answers) for question in questions}
        scores = squad_scores(answers.predictions, golds, options.unanswerable)
        files = {file: json.dumps(answers.predictions, ensure_ascii=False, indent=1) + "\n"}
        if options.unanswerable:
            scores |= best_threshold(answers.spans, golds, answers.null_odds)
            files[f"null_odds_{file}"] = json.dumps(answers.null_odds, indent=1) + "\n"
        return scores, files

    return windows, squad.make_collate(tokenizer, questions, is_train), score
