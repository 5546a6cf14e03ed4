"""The synthetic language has the statistics that its docstring states."""

from pathlib import Path

import numpy as np
import pytest

from bert_pretrain.data.masking_rule import restore_ids
from bert_pretrain.data.shards import ShardReader
from bert_pretrain.errors import ConfigError
from bert_pretrain.study.language import Language, write_corpus
from bert_pretrain.study.options import LanguageConfig

WORDS = 59


def options(**changes) -> LanguageConfig:
    values = {"samples": 4096, "heldout_samples": 64, "sequence_length": 12, "vocab_size": 64, "topics": 4, "seed": 3}
    return LanguageConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("language")
    write_corpus(folder, options())
    return folder


def rows(folder: Path, name: str = "train_00000.hdf5") -> dict:
    reader = ShardReader(folder / name)
    return reader.read(0, reader.samples)


def test_words_follow_each_other_and_their_topic(corpus: Path) -> None:
    """Successors with probability 0.8 plus chance; one cycle through all words; Zipf within a topic."""
    language = Language(options())
    arrays = rows(corpus)
    words = restore_ids(arrays).astype(int) - 5
    for first, last in ((1, 4), (6, 10)):
        follows = language.successor[words[:, first:last]] == words[:, first + 1 : last + 1]
        assert follows.mean() == pytest.approx(0.8 + 0.2 / WORDS, abs=0.03)
    word, seen = 0, set()
    for _ in range(WORDS):
        word = language.successor[word]
        seen.add(int(word))
    assert len(seen) == WORDS
    top = language.ranked[:, 0]  # each topic's most frequent word: 1 / (1 + 1/2 + ... + 1/59) of the words drawn
    share = np.isin(words[:, 1], top).mean()
    harmonic = sum(1 / k for k in range(1, WORDS + 1))
    ranks = np.stack([np.argsort(order) for order in language.ranked])  # (topics, words)
    expected = (1 / (1 + ranks[:, top]) / harmonic).mean(0).sum()
    assert share == pytest.approx(expected, abs=0.03)


def test_the_next_sentence_label_tells_whether_the_topic_changes(corpus: Path) -> None:
    """By likelihood of the first words of both segments, which are drawn from their topics."""
    language = Language(options())
    arrays = rows(corpus)
    words = restore_ids(arrays).astype(int) - 5
    shares = np.empty((4, WORDS))
    for topic in range(4):
        shares[topic, language.ranked[topic]] = np.diff(language.cumulative, prepend=0.0)
    same = (shares[:, words[:, 1]] * shares[:, words[:, 6]]).mean(0)
    total = shares[:, words[:, 1]].mean(0) * shares[:, words[:, 6]].mean(0)
    other = (total * 16 - same * 4) / 12
    guess = other > same
    assert (guess == arrays["next_sentence_labels"]).mean() > 0.6
    assert arrays["next_sentence_labels"].mean() == pytest.approx(0.5, abs=0.03)


def test_the_held_out_split_differs_and_the_same_seed_gives_the_same_corpus(corpus: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path, options())
    first, again = rows(corpus), rows(tmp_path)
    assert all((first[name] == again[name]).all() for name in first)
    assert not (rows(corpus, "heldout_00000.hdf5")["input_ids"] == first["input_ids"][:64]).all(1).any()
    with pytest.raises(ConfigError, match="made with other options; give another out_dir"):
        write_corpus(tmp_path, options(seed=4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 0}, "corpus.samples is 0; allowed: 1 or more"),
        ({"vocab_size": 6}, "corpus.vocab_size is 6; allowed: 7 or more"),
        ({"topics": 1}, "corpus.topics is 1"),
        ({"sequence_length": 7}, "corpus.sequence_length is 7"),
    ],
)
def test_options_out_of_range(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options(**changes)
