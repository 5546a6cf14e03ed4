"""Tags of words: CoNLL's format, windows, labels and scores, by hand and against seqeval's own examples."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer, Regex, normalizers
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertTokenizerFast,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaTokenizerFast,
)

from bert_pretrain.errors import ConfigError
from bert_pretrain.finetune import entities
from bert_pretrain.finetune.entities import Sentence
from bert_pretrain.finetune.pretrained import find_model, load_tokenizer
from bert_pretrain.finetune.scores import tag_scores
from bert_pretrain.finetune.tasks import read_file
from tests.bert_pretrain.finetune.test_tasks import composed

CONLL = """-DOCSTART- -X- -X- O

# global.columns = text ner
Ada NNP B-NP B-PER
Lovelace NNP I-NP I-PER
wrote VBD B-VP O

# O
. O


Paris\tB-LOC
"""
LABELS = ["O", "B-LOC", "B-PER", "I-PER"]
ADA = Sentence(("Ada", "Lovelace", "wrote"), ("B-PER", "I-PER", "O"))


def task():
    return composed("ner", "model_dir=m").task


def read(folder: Path, text: str) -> list:
    path = folder / "train.txt"
    path.write_text(text)
    return read_file(task(), path, "train", print)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BertTokenizerFast:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ada", "love", "##lace", "wrote", "a", "##b"]
    path = tmp_path_factory.mktemp("words") / "vocab.txt"
    path.write_text("\n".join(words))
    return BertTokenizerFast(tokenizer_object=BertWordPieceTokenizer(str(path), lowercase=True)._tokenizer)


def test_files_with_two_or_four_columns_comments_and_document_marks(tmp_path: Path) -> None:
    rows = read(tmp_path, CONLL)
    sentences = entities.read_sentences(task(), rows, "train.txt", labelled=True)
    assert sentences == [
        ADA,
        Sentence(("#", "."), ("O", "O")),
        Sentence(("Paris",), ("B-LOC",)),
    ]
    assert entities.tags_of(sentences) == LABELS


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_as_on_any_system_and_words_keep_other_spaces(tmp_path: Path, end: str) -> None:
    text = end.join(["Ada B-PER", "10\u00a0000 \t O", " \t", "", "Paris\tB-LOC\t", ""])
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    rows = read_file(task(), tmp_path / "train.txt", "train", print)
    assert [row["tokens"] for row in rows] == [["Ada", "10\u00a0000"], ["Paris"]]
    assert [row["ner_tags"] for row in rows] == [["B-PER", "O"], ["B-LOC"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "Ada B-PER\nLovelace\n",
            "line 2 is 'Lovelace'; allowed: a word, maybe other columns, and a tag: O, or B-, I-, E-, S-, L-, U- and",
        ),
        ("Ada NNP\n", "line 1 is 'Ada NNP'; allowed"),
    ],
)
def test_a_line_without_a_tag_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"ner_tags": ["O"]}, "sentence 1 has no 'tokens', a list of words"),
        ({"tokens": ["a"]}, "sentence 1 has no 'ner_tags', a list of tags"),
        ({"tokens": ["a", "b"], "ner_tags": ["O"]}, "sentence 1 has 2 words and 1 tags; allowed: a tag for each word"),
        ({"tokens": ["a"], "ner_tags": [3]}, "sentence 1 has the tag 3; allowed: O, or"),
        ({"tokens": ["a"], "ner_tags": 3}, "sentence 1 has no 'ner_tags', a list of tags"),
        ({"tokens": ["a", "b"], "ner_tags": "OO"}, "sentence 1 has no 'ner_tags', a list of tags"),
        ({"tokens": ["a", None], "ner_tags": ["O", "O"]}, "sentence 1 has no 'tokens', a list of words"),
    ],
)
def test_rows_of_other_shapes_are_refused(row: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        entities.read_sentences(task(), [row], "rows", labelled=True)


def test_a_tag_that_is_not_trained_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"dev\.txt has the tag 'B-ORG'; allowed: those of the training set, O, B-LOC"
    ):
        entities.check_tags([Sentence(("x",), ("B-ORG",))], LABELS, "dev.txt")


def test_the_first_piece_of_a_word_has_its_label(tokenizer: BertTokenizerFast) -> None:
    """[CLS] ada love ##lace wrote [SEP]."""
    parts = entities.windows([ADA], tokenizer, 16)
    assert [part.places for part in parts] == [[1, 2, 4]]
    batch = entities.make_collate(tokenizer, [ADA], LABELS)(parts)
    assert batch["input_ids"].tolist() == [[2, 5, 6, 7, 8, 3]]
    assert batch["labels"].tolist() == [[-100, 2, 3, -100, 0, -100]]


@pytest.mark.parametrize("like", ["roberta", "modernbert", "llama", "no steps to normalize"])
def test_words_of_byte_level_tokenizers_have_their_space(tmp_path: Path, like: str) -> None:
    """As in a text, where all words but the first have one. The tokenizer that is saved gives the same ids."""
    bpe = ByteLevelBPETokenizer()
    if like not in ("roberta", "modernbert"):
        split = Split(Regex(r"'s| ?\w+|\."), "isolated")
        bpe._tokenizer.pre_tokenizer = Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    if like == "no steps to normalize":
        bpe._tokenizer.normalizer = normalizers.Sequence([])
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    bpe.train_from_iterator(["John's Smith lives. John's Smith lives."] * 9, vocab_size=300, special_tokens=special)
    bpe.save_model(str(tmp_path))
    tokenizer = (
        RobertaTokenizerFast.from_pretrained(tmp_path)
        if like == "roberta"
        else PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, pad_token="<pad>", unk_token="<unk>")
    )
    RobertaConfig(vocab_size=300).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    sentence = Sentence(("John's", "Smith", "lives"), ("O", "O", "O"))
    in_text = tokenizer(" John's Smith lives").input_ids
    first = 1 if like == "roberta" else 0  # <s> before it
    for _ in range(2):
        loaded = load_tokenizer(find_model(str(tmp_path)), "tags", 16)
        window = entities.windows([sentence], loaded, 16)[0]
        assert window.inputs["input_ids"] == in_text
        assert window.places == [first, first + 2, first + 3]  # 's is the second piece
        loaded.save_pretrained(tmp_path)
        saved = AutoTokenizer.from_pretrained(tmp_path)
        assert saved([list(sentence.words)], is_split_into_words=True).input_ids == [in_text]
    tokenizer.save_pretrained(tmp_path)
    plain = load_tokenizer(find_model(str(tmp_path)), "classification", 16)
    assert plain("John Smith").input_ids == tokenizer("John Smith").input_ids != loaded("John Smith").input_ids


def test_other_tokenizers_stay_as_they_are_and_pad_on_the_right(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    BertConfig(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    BertTokenizerFast(tokenizer_object=tokenizer._tokenizer, padding_side="left").save_pretrained(tmp_path)
    loaded = load_tokenizer(find_model(str(tmp_path)), "tags", 16)
    short = Sentence(("ada",), ("B-PER",))
    parts = entities.windows([ADA, short], loaded, 16)
    assert parts == entities.windows([ADA, short], tokenizer, 16)
    batch = entities.make_collate(loaded, [ADA, short], LABELS)(parts)
    assert batch["input_ids"][1].tolist() == [2, 5, 3, 0, 0, 0]
    assert batch["labels"][1].tolist() == [-100, 2, -100, -100, -100, -100]


def test_a_long_sentence_is_cut_between_words_and_no_word_is_lost(tokenizer: BertTokenizerFast) -> None:
    """Five pieces fit a window of seven tokens: ada, ada, then lovelace (2) and ada, ada, ..."""
    words = ("ada", "ada", "lovelace", "lovelace", "wrote", "lovelace")
    sentence = Sentence(words, ("O", "B-LOC", "B-PER", "I-PER", "O", "B-LOC"))
    parts = entities.windows([sentence], tokenizer, 7)
    assert [(part.first_word, part.places) for part in parts] == [(0, [1, 2, 3]), (3, [1, 3, 4])]
    batch = entities.make_collate(tokenizer, [sentence], LABELS)(parts)
    kept = [[label for label in row if label >= 0] for row in batch["labels"].tolist()]
    assert kept == [[0, 1, 2], [3, 0, 1]]
    logits = np.zeros((2, 7, 4))
    for row, part in enumerate(parts):
        for place, label in zip(part.places, kept[row], strict=True):
            logits[row, place, label] = 1.0
    assert entities.predicted([sentence], parts, logits, LABELS) == [list(sentence.tags or ())]


def test_a_word_longer_than_a_window_and_one_without_a_piece(tokenizer: BertTokenizerFast) -> None:
    """abbbbbbbb is cut off behind its first pieces; of U+200B the tokenizer leaves nothing, so its tag is O."""
    sentence = Sentence(("a" + "b" * 8, "\u200b", "ada"), ("B-LOC", "B-LOC", "B-PER"))
    parts = entities.windows([sentence], tokenizer, 6)
    assert [part.places for part in parts] == [[1], [-1, 1]]
    logits = np.zeros((2, 6, 4))
    logits[:, 1, 2] = 1.0
    assert entities.predicted([sentence], parts, logits, LABELS) == [["B-PER", "O", "B-PER"]]


def test_scores_by_hand() -> None:
    """Two of three entities found, one of three found is wrong: precision, recall and F1 2/3; five of six tags."""
    golds = [["B-PER", "I-PER", "O"], ["B-LOC", "O", "B-LOC"]]
    found = [["B-PER", "I-PER", "O"], ["B-LOC", "O", "B-PER"]]
    scores = tag_scores(["f1", "precision", "recall", "accuracy"], golds, found)
    assert scores == pytest.approx({"f1": 200 / 3, "precision": 200 / 3, "recall": 200 / 3, "accuracy": 500 / 6})
    half = tag_scores(["f1"], [["B-PER", "I-PER"]], [["B-PER", "O"]])
    assert half == {"f1": 0.0}, "half an entity is none"
    assert tag_scores(["f1"], [["O"]], [["O"]]) == {"f1": 0.0}


def test_bilou_by_hand() -> None:
    """Entities: Ada Lovelace, Paris, Rome, and one of three words.

    Three are found, and a part of the fourth: precision, recall and F1 3/4. seqeval alone reads L and U as I: it
    joins Paris and Rome, and misses every U behind O.
    """
    golds = [["B-PER", "L-PER", "O", "U-LOC", "U-LOC", "O", "B-ORG", "I-ORG", "L-ORG"]]
    found = [["B-PER", "L-PER", "O", "U-LOC", "U-LOC", "O", "B-ORG", "L-ORG", "O"]]
    scores = tag_scores(["f1", "precision", "recall", "accuracy"], golds, found)
    assert scores == pytest.approx({"f1": 75.0, "precision": 75.0, "recall": 75.0, "accuracy": 700 / 9})
    assert tag_scores(["f1"], [["U-A", "U-A"]], [["U-A", "O"]])["f1"] == pytest.approx(200 / 3)
    assert tag_scores(["f1"], [["O", "L-A"]], [["O", "E-A"]]) == {"f1": 100.0}


def test_predictions_are_a_conll_file(tmp_path: Path) -> None:
    text = entities.submission([ADA, ADA], [["O", "O", "O"], list(ADA.tags or ())])
    assert [row["ner_tags"] for row in read(tmp_path, text)] == [["O", "O", "O"], ["B-PER", "I-PER", "O"]]
