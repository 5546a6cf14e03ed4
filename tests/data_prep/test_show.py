"""The show command: clean documents of the corpus, the same for the same seed."""

import re
from pathlib import Path

import pytest

from bert_pretrain.errors import ConfigError
from data_prep.options import ShowConfig
from data_prep.random_documents import random_documents
from data_prep.sources.cleaning import Dropped
from tests.conftest import run_module
from tests.data_prep.sources.test_documents import corpus
from tests.data_prep.sources.test_wikipedia import HEAD, PAGES, page


def test_wikipedia_without_its_markup(tmp_path: Path) -> None:
    """Three of four articles are printed: the fourth is a template only; the redirect is not an article."""
    pages = [*PAGES[:3], page("Old", "#REDIRECT [[One]]"), page("Empty", "{{stub}}")]
    (tmp_path / "a.xml").write_text(HEAD + "".join(pages) + "</mediawiki>")
    shown = run_module("data_prep.show", "corpus=wikipedia", f"corpus.path={tmp_path}", "corpus.cleaning.min_words=0")
    assert shown.returncode == 0, shown.stderr
    expected = [
        f"=== Article {number} (2 sentences)\nThe text of article {number} is this.\nIt ends." for number in (0, 1, 2)
    ]
    *documents, last = shown.stdout.strip().split("\n\n")
    assert sorted(documents) == expected
    assert last == "dropped by rule redirect: 1; for example 'Old'"


def test_a_random_share_of_all_pieces(tmp_path: Path) -> None:
    """Every document is drawn about equally often, whatever its length and position."""
    texts = [f"Document {number}. " + "It goes on. " * (50 * (number % 3)) for number in range(20)]
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    counts = dict.fromkeys(range(20), 0)
    for seed in range(200):
        config = ShowConfig(corpus(tmp_path / "a.txt"), 5, None, seed)
        drawn = [sentences[0] for _, sentences in random_documents(config, Dropped())][:5]
        assert drawn == [sentences[0] for _, sentences in random_documents(config, Dropped())][:5]
        for sentence in drawn:
            counts[int(re.findall(r"\d+", sentence)[0])] += 1
    assert sum(counts.values()) == 1000
    assert min(counts.values()) > 20  # 50 each, by 6.1 on average
    assert max(counts.values()) < 80


def test_errors(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n\n")
    shown = run_module("data_prep.show", "corpus=text", f"corpus.path={tmp_path}")
    assert (shown.returncode, shown.stdout) == (2, "")
    assert shown.stderr == f"error: corpus.path '{tmp_path}' holds no text: every document is empty\n"
    with pytest.raises(ConfigError, match="documents is 0"):
        ShowConfig(corpus(tmp_path), 0, None, 0)
