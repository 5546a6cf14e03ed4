"""SQuAD windows and answers, against plain loops after Google's run_squad.py, and on real questions."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import BertWordPieceTokenizer
from transformers import BertTokenizerFast

from bert_pretrain.errors import ConfigError
from bert_pretrain.finetune.options import AnswerConfig
from bert_pretrain.finetune.squad import Question, Window, best_answers, make_collate, read_questions, span, windows
from bert_pretrain.finetune.tasks import read_file
from tests.bert_pretrain.finetune.test_tasks import composed
from tests.conftest import ROOT

DATA = ROOT.parent / "shared" / "data"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, "who", "what", "where", "is", "was", "the", *"abcdefg", "##x", "##y", "##z", ".", ",", "?"]
CONTEXT = (
    "A b  c\td efg. ax by\N{NO-BREAK SPACE}cz, the d? E f: gxyz a b c d e f g ax by cz. Ex fy the g was \N{SNOWMAN} c."
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BertTokenizerFast:
    vocab = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    vocab.write_text("\n".join(WORDS))
    return of_vocabulary(vocab)


def of_vocabulary(vocab: Path) -> BertTokenizerFast:
    return BertTokenizerFast(tokenizer_object=BertWordPieceTokenizer(str(vocab), lowercase=True)._tokenizer)


def answers(**changes: float) -> AnswerConfig:
    values: dict = {"unanswerable": False, "max_query_length": 64, "doc_stride": 5, "max_answer_length": 30}
    return AnswerConfig(**{**values, "n_best": 20, "null_threshold": 0.0, **changes})


def google_spans(tokens: int, room: int, stride: int) -> list[tuple[int, int]]:
    """First token and length of each window, as run_squad.py computes them."""
    spans, start = [], 0
    while start < tokens:
        length = min(tokens - start, room)
        spans.append((start, length))
        if start + length == tokens:
            break
        start += min(length, stride)
    return spans


@pytest.mark.parametrize(
    ("max_length", "stride", "query"), [(16, 5, 9), (16, 1, 9), (17, 100, 4), (24, 7, 2), (200, 128, 5)]
)
def test_windows_match_run_squad(tokenizer: BertTokenizerFast, max_length: int, stride: int, query: int) -> None:
    questions = [Question("1", "Who is the a?", CONTEXT, ("b",), 2), Question("2", "What", CONTEXT[:30], ("b",), 2)]
    found = windows(questions, tokenizer, answers(doc_stride=stride, max_query_length=query), max_length)
    expected = []
    for number, question in enumerate(questions):
        query_ids = tokenizer(question.text, add_special_tokens=False)["input_ids"][:query]
        whole = tokenizer(question.context, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = whole["input_ids"], whole["offset_mapping"]
        spans = google_spans(len(ids), max_length - len(query_ids) - 3, stride)
        for start, length in spans:
            before = len(query_ids) + 2
            expected.append(
                {
                    "question": number,
                    "ids": [2, *query_ids, 3, *ids[start : start + length], 3],
                    "segments": [0] * before + [1] * (length + 1),
                    "offsets": [(-1, -1)] * before + offsets[start : start + length] + [(-1, -1)],
                }
            )
    assert [as_lists(window) for window in found] == expected


def as_lists(window: Window) -> dict:
    return {
        "question": window.question,
        "ids": window.inputs["input_ids"].tolist(),
        "segments": window.inputs["token_type_ids"].tolist(),
        "offsets": [tuple(pair) for pair in window.offsets.tolist()],
    }


def perfect_logits(found: list[Window], questions: list[Question]) -> tuple[np.ndarray, np.ndarray]:
    """The logits of a model that knows every answer, from the training spans."""
    longest = max(len(window.offsets) for window in found)
    starts, ends = np.zeros((2, len(found), longest), dtype=np.float32)
    for row, window in enumerate(found):
        first, last = span(window, questions[window.question])
        starts[row, first] += 9.0
        ends[row, last] += 9.0
    return starts, ends


def test_every_answer_is_recovered_to_the_character_from_any_window(tokenizer: BertTokenizerFast) -> None:
    """All spans of one to four words of a text with unusual spaces and characters."""
    offsets = tokenizer(CONTEXT, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    questions = []
    for first in range(len(offsets)):
        for last in range(first, min(first + 4, len(offsets))):
            start, end = offsets[first][0], offsets[last][1]
            questions.append(Question(f"{first}-{last}", "Who is the a?", CONTEXT, (CONTEXT[start:end],), start))
    found = windows(questions, tokenizer, answers(), 16)
    assert len(found) > 5 * len(questions)
    given = best_answers(questions, found, *perfect_logits(found, questions), answers())
    assert given.predictions == {question.key: question.answers[0] for question in questions}


def test_a_window_with_part_of_the_answer_points_at_cls(tokenizer: BertTokenizerFast) -> None:
    start = CONTEXT.index("by cz. Ex")
    question = Question("1", "Who", CONTEXT, ("by cz. Ex",), start)
    found = windows([question], tokenizer, answers(doc_stride=3), 16)
    held = 0
    for window in found:
        first, last = span(window, question)
        inside = window.offsets[window.offsets[:, 0] >= 0]
        whole = inside[0, 0] <= start and inside[-1, 1] >= start + len("by cz. Ex")
        held += whole
        assert (first > 0) == whole
        if whole:
            assert CONTEXT[window.offsets[first, 0] : window.offsets[last, 1]] == "by cz. Ex"
    assert 0 < held < len(found)


def test_spans_that_are_too_long_reversed_or_outside_the_context_are_rejected(tokenizer: BertTokenizerFast) -> None:
    question = Question("1", "Who is", "a b c d e f g", ("b",), 2)
    config = answers(max_answer_length=2, doc_stride=100)
    (window,) = windows([question], tokenizer, config, 40)
    start, end = np.zeros((2, 1, len(window.offsets)), dtype=np.float32)
    at = {word: place for place, word in enumerate(tokenizer.convert_ids_to_tokens(window.inputs["input_ids"]))}
    start[0, [at["who"], at["e"], at["b"]]] = 99.0, 9.0, 6.0
    end[0, [at["is"], at["b"], at["c"], at["g"]]] = 99.0, 8.0, 5.0, 7.0
    # e..b is reversed and e..g, b..g are too long; b..b scores 14, e..e 9, b..c 11
    assert best_answers([question], [window], start, end, config).predictions == {"1": "b"}
    tied = best_answers([question], [window], start * 0, end * 0, config).predictions["1"]
    assert tied == "a"  # of equal scores, the first


def test_no_answer_is_predicted_if_its_score_is_above_the_threshold(tokenizer: BertTokenizerFast) -> None:
    question = Question("1", "Who", CONTEXT, (), -1)
    config = answers(unanswerable=True, doc_stride=8)
    found = windows([question], tokenizer, config, 16)
    assert {span(window, question) for window in found} == {(0, 0)}
    starts, ends = np.zeros((2, len(found), 16), dtype=np.float32)
    starts[:, 0], ends[:, 0] = 4.0, 1.0
    starts[1, 0] = 2.0  # the lowest "no answer" score of all windows counts: 2 + 1
    place = int(np.flatnonzero(found[2].offsets[:, 0] >= 0)[0])
    starts[2, place], ends[2, place] = 1.5, 0.5
    given = best_answers([question], found, starts, ends, config)
    assert given.null_odds == {"1": pytest.approx(3.0 - 2.0)}
    assert given.predictions == {"1": ""}
    assert given.spans["1"] != ""
    lenient = answers(unanswerable=True, doc_stride=8, null_threshold=1.5)
    assert best_answers([question], found, starts, ends, lenient).predictions == given.spans


def test_batches_are_padded_and_hold_answer_positions(tokenizer: BertTokenizerFast) -> None:
    questions = [Question("1", "Who", CONTEXT, ("efg",), CONTEXT.index("efg")), Question("2", "Who", "a b", ("b",), 2)]
    found = windows(questions, tokenizer, answers(doc_stride=100), 100)
    batch = make_collate(tokenizer, questions, training=True)(found)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, len(found[0].offsets))
    assert batch["attention_mask"].sum(1).tolist() == [len(window.offsets) for window in found]
    spans = zip(batch["start_positions"].tolist(), batch["end_positions"].tolist(), strict=True)
    for row, (question, (first, last)) in enumerate(zip(questions, spans, strict=True)):
        assert question.context[found[row].offsets[first, 0] : found[row].offsets[last, 1]] == question.answers[0]
    assert "start_positions" not in make_collate(tokenizer, questions, training=False)(found)


def row(**changes: object) -> dict:
    base = {"id": "q", "question": "Who?", "context": "a b c", "answers": [{"text": "b", "answer_start": 2}]}
    return {key: value for key, value in {**base, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("rows", "unanswerable", "message"),
    [
        ([row(answers=[])], False, r"question 'q' has no answer; only task=squad_v2"),
        ([row(answers=[], is_impossible=False)], True, r"question 'q' has no answer"),
        ([row(answers=None)], False, r"question 1 has no 'answers', only id, question, context"),
        ([row(answers=[{"text": "", "answer_start": 0}])], False, r"question 'q' has an answer without text"),
        ([row(answers=[{"text": "c", "answer_start": 2}])], False, r"the answer 'c' is not at answer_start 2"),
        ([row(answers=[{"text": "b"}])], False, r"the answer 'b' is not at answer_start -1"),
        ([row(), row()], False, r"two questions with the id 'q'"),
        ([], False, r"has no questions"),
    ],
)
def test_errors_in_questions_are_reported(rows: list[dict], unanswerable: bool, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_questions(rows, "train.json", unanswerable, training=True)


def test_files_and_the_hub_give_the_same_questions(tmp_path: Path) -> None:
    qas = [{"id": "1", "question": " Who?", "answers": [{"text": "b", "answer_start": 2}], "is_impossible": False}]
    qas += [{"id": "2", "question": "What?", "answers": [], "is_impossible": True, "plausible_answers": ["a"]}]
    document = {"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": "a b c", "qas": qas}]}]}
    (tmp_path / "train-v2.0.json").write_text(json.dumps(document))
    of_file = read_file(composed("squad_v2").task, tmp_path / "train-v2.0.json", "train", print)
    of_hub = [
        {
            "id": "1",
            "title": "t",
            "context": "a b c",
            "question": "Who?",
            "answers": {"text": ["b"], "answer_start": [2]},
        },
        {"id": "2", "context": "a b c", "question": "What?", "answers": {"text": [], "answer_start": []}},
    ]
    expected = [Question("1", "Who?", "a b c", ("b",), 2), Question("2", "What?", "a b c", (), -1)]
    assert read_questions(of_file, "f", True, training=True) == expected
    assert read_questions(of_hub, "h", True, training=True) == expected
    (tmp_path / "x.json").write_text('{"data": [{"paragraphs": [{"qas": [{}]}]}]}')
    with pytest.raises(ConfigError, match=r"x.json is not in SQuAD's format.*'context'"):
        read_file(composed("squad_v1").task, tmp_path / "x.json", "train", print)


def test_answers_of_real_questions_are_recovered() -> None:
    """From perfect logits all answers come back, except those that start or end inside a word piece."""
    path = DATA / "squad/squadshifts_new_wiki_v1.0.json.xz"
    if not path.exists():
        pytest.skip("shared/data is not beside the repository")
    tokenizer = of_vocabulary(DATA / "vocab/bert-base-uncased-vocab.txt")
    rows = read_file(composed("squad_v1").task, path, "train", print)[::40]
    questions = read_questions(rows, str(path), False, training=True)
    config = answers(doc_stride=64)  # half a window, so that some window contains all of the answer
    found = windows(questions, tokenizer, config, 160)
    given = best_answers(questions, found, *perfect_logits(found, questions), config).predictions
    pieces = [len(tokenizer(question.answers[0], add_special_tokens=False)["input_ids"]) for question in questions]
    short = [question for question, count in zip(questions, pieces, strict=True) if count <= config.max_answer_length]
    assert len(short) >= 0.97 * len(questions)
    assert all(question.answers[0] in given[question.key] for question in short)
    assert sum(question.answers[0] == given[question.key] for question in short) >= 0.97 * len(short)
