"""Reading: the same text, however it is stored; and what is no text is named with its place."""

import json
from pathlib import Path

import pytest

from bert_pretrain.errors import ConfigError
from data_prep.documents import CorpusConfig, corpus_files, corpus_fingerprint, corpus_sources, read_documents


def corpus(path: Path | str, **changes: object) -> CorpusConfig:
    values: dict = {
        "kind": "text",
        "path": str(path),
        "documents": "blank_line",
        "lines": "paragraph",
        "text_field": "text",
        "language": "en",
        "licence": None,
        "drop_repeated_sentences": False,
    }
    return CorpusConfig(**{**values, **changes})


def read(path: Path | str, **changes: object) -> list[list[str]]:
    return [document.paragraphs for document in read_documents(corpus(path, **changes), workers=1)]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("last", [b"", b"\n", b"\n\n\n"])
def test_marks_and_line_ends(tmp_path: Path, mark: bytes, end: bytes, last: bytes) -> None:
    text = mark + b"\nOne a.\nOne  b.\n \t\n\nTw\xc3\xb6.\n\n\nThree." + last
    (tmp_path / "a.txt").write_bytes(text.replace(b"\n", end))
    assert read(tmp_path / "a.txt") == [["One a.", "One b."], ["Twö."], ["Three."]]


def test_what_ends_a_document_and_a_paragraph(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A line\nthat goes on.\nAnd on.\n\nNext\nblock.\n")
    (tmp_path / "b.txt").write_text("\n\n")
    (tmp_path / "c.txt").write_text("Other.")
    assert read(tmp_path, lines="wrapped") == [["A line that goes on. And on."], ["Next block."], ["Other."]]
    assert read(tmp_path, lines="wrapped", documents="file") == [
        ["A line that goes on. And on.", "Next block."],
        ["Other."],
    ]
    assert read(tmp_path, documents="file")[0] == ["A line", "that goes on.", "And on.", "Next", "block."]
    documents = list(read_documents(corpus(tmp_path, lines="sentence"), 1))
    assert [document.split for document in documents] == [False] * 3
    assert documents[0].source == "a.txt"


def test_files_directories_and_patterns(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.txt", "a.txt", "deep/c.TXT", "d.md"):
        (tmp_path / name).write_text("Text.")
    assert [path.name for path in corpus_files(corpus(tmp_path))] == ["a.txt", "b.txt", "c.TXT"]
    assert [path.name for path in corpus_files(corpus(tmp_path / "d.md"))] == ["d.md"]
    assert [path.name for path in corpus_files(corpus(f"{tmp_path}/*.md"))] == ["d.md"]
    assert corpus_sources(corpus(tmp_path, licence="CC0"))["a.txt"].licence == "CC0"


@pytest.mark.parametrize("path", ["none", "none/*.txt", "empty", "none.txt"])
def test_nothing_found(tmp_path: Path, path: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="nothing was found"):
        corpus_files(corpus(tmp_path / path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"Good.\nBad \xe9t\xe9.\n", r"a\.txt is not UTF-8 at byte 10 \(0xe9"),
        (b"\xef\xbb\xbfBad \xff", "at byte 7 "),
        ("Text.".encode("utf-16"), r"NUL byte at byte 3|not UTF-8 at byte 0"),
        (b"Text.\n\x00\x01", "NUL byte at byte 6"),
        (b"Cut \xe2\x82", "at byte 4 "),
    ],
)
def test_no_utf8_text(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / "a.txt")


def test_json_lines(tmp_path: Path) -> None:
    rows = [{"text": "One.\n\nTwo  words."}, {"text": " \n"}, {"text": "Three\u2028four.", "id": 1}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert read(tmp_path, kind="jsonl") == [["One.", "Two words."], ["Three", "four."]]
    (tmp_path / "b.jsonl").write_text('{"body": "B."}')
    assert read(tmp_path / "b.jsonl", kind="jsonl", text_field="body") == [["B."]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', r"line 2: not JSON"),
        ('{"body": "a"}', r"line 2: no field 'text'"),
        ("[1]", "no field"),
        ("3", "no field"),
        ('{"text": 3}', "is no string"),
    ],
)
def test_bad_json_lines(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "Good."}\n' + line)
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / "a.jsonl", kind="jsonl")


@pytest.mark.parametrize(
    "change", [{"kind": "xml"}, {"documents": "page"}, {"lines": "word"}, {"path": None}, {"path": ""}]
)
def test_options_are_checked(change: dict) -> None:
    with pytest.raises(ConfigError, match=rf"corpus\.{next(iter(change))}"):
        corpus("x", **change) if "path" not in change else CorpusConfig(**{**corpus("x").__dict__, **change})


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One.")
    first = corpus_fingerprint(corpus(tmp_path))
    assert corpus_fingerprint(corpus(tmp_path)) == first
    (tmp_path / "a.txt").write_text("Two two.")
    assert corpus_fingerprint(corpus(tmp_path)) != first
