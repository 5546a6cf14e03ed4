"""Files of corpora that a user may not expect to be read, or not to be."""

from pathlib import Path

import pytest

from bert_pretrain.errors import ConfigError
from data_prep.corpus import corpus_files
from data_prep.corpus_check import check_corpora
from data_prep.options import CleaningConfig, CorpusConfig


def corpus(path: Path | str, kind: str = "text") -> CorpusConfig:
    fields = dict.fromkeys(CorpusConfig.__dataclass_fields__)
    made = object.__new__(CorpusConfig)
    cleaning = CleaningConfig("NFC", True, 5, 0.25, 0.35, True, 0, False)
    made.__dict__.update(fields, kind=kind, path=str(path), cleaning=cleaning)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "far").mkdir()
    (tmp_path / "far/b.txt").write_text("b")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/a.txt").write_text("a")
    return tmp_path / "corpus"


def test_a_linked_folder_is_read_once_and_loops_end(folder: Path) -> None:
    (folder / "more").symlink_to(folder.parent / "far")
    (folder / "again").symlink_to(folder.parent / "far")
    (folder / "loop").symlink_to(folder)
    assert [path.name for path in corpus_files(corpus(folder))] == ["a.txt", "b.txt"]
    assert check_corpora({"c": corpus(folder)}) == []


def test_hidden_files_and_dangling_links_are_said(folder: Path) -> None:
    (folder / "._a.txt").write_bytes(b"\0\5\x16\7")
    (folder / "gone.txt").symlink_to(folder / "nowhere")
    assert [path.name for path in corpus_files(corpus(folder))] == ["a.txt"]
    hidden, dangling = check_corpora({"c": corpus(folder)})
    assert "1 not read, because the name begins with a dot" in hidden
    assert "the link leads nowhere" in dangling


def test_a_file_of_two_corpora_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"corpora one and two both hold the file .*a\.txt"):
        check_corpora({"one": corpus(folder), "two": corpus(folder / "*.txt")})
    (folder / "same.txt").symlink_to(folder / "a.txt")
    with pytest.raises(ConfigError, match=r"a\.txt, also as .*same\.txt"):
        check_corpora({"one": corpus(folder)})


@pytest.mark.parametrize("pattern", ["", "/**/*.txt"])
def test_an_out_dir_within_the_corpus_is_refused(folder: Path, pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"lies within corpus\.path"):
        check_corpora({"c": corpus(f"{folder}{pattern}")}, folder / "out")
    check_corpora({"c": corpus(f"{folder}{pattern}")}, folder.parent / "out")
