"""Readers: the same text from every file format, and an error with file and position for what is not text."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from bert_pretrain.errors import ConfigError
from data_prep.corpus import corpora_fingerprint, corpus_files, corpus_sources, warn_of_losses
from data_prep.engine.planning import needs_chunks, plan_pieces
from data_prep.options import CleaningConfig, CorpusConfig
from data_prep.sources import documents, streams
from data_prep.sources.cleaning import Dropped
from data_prep.sources.documents import Document, read_piece
from data_prep.sources.rows import BadRowError, json_array

KEEP_ALL = CleaningConfig("none", False, 0, 1.0, 1.0, False, 0, False)


def corpus(path: Path | str, **changes: object) -> CorpusConfig:
    values: dict = {
        "kind": "text",
        "path": str(path),
        "documents": "blank_line" if changes.get("kind", "text") == "text" else "file",
        "lines": "paragraph",
        "text_field": "text",
        "bad_rows": 0.0,
        "subset": None,
        "split": "train",
        "language": "en",
        "licence": None,
        "weight": 1.0,
        "cleaning": KEEP_ALL,
        "rule": None,
        "drop_repeated_sentences": False,
    }
    return CorpusConfig(**{**values, **changes})


def documents_of(path: Path | str, piece_bytes: int = 1 << 24, **changes: object) -> list[Document]:
    pieces = plan_pieces({"corpus": corpus(path, **changes)}, piece_bytes)
    return [document for piece in pieces for document in read_piece(piece, Dropped())]


def read(path: Path | str, piece_bytes: int = 1 << 24, **changes: object) -> list[list[str]]:
    return [document.paragraphs for document in documents_of(path, piece_bytes, **changes)]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("last", [b"", b"\n", b"\n\n\n"])
def test_marks_and_line_ends(tmp_path: Path, mark: bytes, end: bytes, last: bytes) -> None:
    text = mark + b"\nOne a.\nOne  b.\n \t\n\nTw\xc3\xb6.\n\n\nThree." + last
    (tmp_path / "a.txt").write_bytes(text.replace(b"\n", end))
    assert read(tmp_path / "a.txt") == [["One a.", "One b."], ["Twö."], ["Three."]]


def test_ends_of_documents_and_paragraphs(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A line\nthat goes on.\nAnd on.\n\nNext\nblock.\n")
    (tmp_path / "b.txt").write_text("\n\n")
    (tmp_path / "c.txt").write_text("Other.")
    assert read(tmp_path, lines="wrapped") == [["A line that goes on. And on."], ["Next block."], ["Other."]]
    assert read(tmp_path, lines="wrapped", documents="file") == [
        ["A line that goes on. And on.", "Next block."],
        ["Other."],
    ]
    assert read(tmp_path, documents="file")[0] == ["A line", "that goes on.", "And on.", "Next", "block."]
    documents = documents_of(tmp_path, lines="sentence")
    assert [document.needs_splitting for document in documents] == [False] * 3
    assert documents[0].source == "corpus"


def test_files_directories_and_patterns(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.txt", "a.txt", "deep/c.TXT", "d.md"):
        (tmp_path / name).write_text("Text.")
    assert [path.name for path in corpus_files(corpus(tmp_path))] == ["a.txt", "b.txt", "c.TXT"]
    assert [path.name for path in corpus_files(corpus(tmp_path / "d.md"))] == ["d.md"]
    assert [path.name for path in corpus_files(corpus(f"{tmp_path}/*.md"))] == ["d.md"]
    assert corpus_sources("mine", corpus(tmp_path, licence="CC0"))["mine"]["licence"] == "CC0"


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
def test_text_that_is_not_utf8(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / "a.txt")


def test_json_lines(tmp_path: Path) -> None:
    rows = [{"text": "One.\n\nTwo  words."}, {"text": " \n"}, {"text": "Three\u2028four.", "id": 1}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert read(tmp_path, kind="jsonl") == [["One.", "Two words."], ["Three", "four."]]
    (tmp_path / "b.jsonl").write_text('{"body": "B."}')
    (tmp_path / "c.jsonl").write_text('{"text": "Half \\ud83d, whole \\ud83d\\ude00."}')
    assert read(tmp_path / "c.jsonl", kind="jsonl") == [["Half ?, whole \U0001f600."]]
    assert read(tmp_path / "b.jsonl", kind="jsonl", text_field="body") == [["B."]]
    (tmp_path / "c.jsonl").write_text('{"id": 1, "verses": [{"text": "C."}, {"text": "D."}]}\n')
    assert read(tmp_path / "c.jsonl", kind="jsonl", text_field="verses.text") == [["C.", "D."]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', r"line 2: not JSON"),
        ('{"body": "a"}', r"line 2: no field 'text'"),
        ("[1]", "no field"),
        ("3", "no field"),
        ('{"text": 3}', r"line 2: field 'text' holds int, not text"),
        ('{"text": ["a", 3]}', r"line 2: field 'text' holds int, not text"),
    ],
)
def test_bad_json_lines(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "Good."}\n' + line)
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / "a.jsonl", kind="jsonl")


FIELDS: dict[str, tuple[dict[str, object], list[str]]] = {
    "doc.text": ({"doc": {"text": "Nested."}}, ["Nested."]),
    "doc.title+text": ({"text": "Body.\nMore.", "doc": {"title": "Head."}}, ["Head.", "Body.", "More."]),
    "a.b": ({"a.b": "Named so.", "a": {"b": "no"}}, ["Named so."]),
    "doc.parts": ({"doc": {"parts": ["One.", None, "", "Two."]}}, ["One.", "Two."]),
    "title+text": ({"title": None, "text": "Only."}, ["Only."]),
}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "dataset"])
def test_fields_of_rows(tmp_path: Path, field: str, kind: str) -> None:
    row, expected = FIELDS[field]
    table = pyarrow.Table.from_pylist([row])
    if kind == "dataset":
        datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    elif kind == "parquet":
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    else:
        (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert read(tmp_path / "saved" if kind == "dataset" else tmp_path, kind=kind, text_field=field) == [expected]


@pytest.mark.parametrize("form", ["dictionary", "string_view", "large_string"])
def test_text_columns_of_other_types(tmp_path: Path, form: str) -> None:
    types = {
        "dictionary": pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
        "string_view": pyarrow.string_view(),
        "large_string": pyarrow.large_string(),
    }
    column = pyarrow.array(["One.", None, "Two.", "One."]).cast(types[form])
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    assert read(tmp_path, kind="parquet") == [["One."], ["Two."], ["One."]]


def test_bad_rows_are_counted_up_to_a_share(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"Row {number}."}) for number in range(96)]
    rows[50:50] = ["{", '{"body": "a"}', '{"text": null}', '{"text": ""}']
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    dropped = Dropped()
    (piece,) = plan_pieces({"corpus": corpus(tmp_path, kind="jsonl", bad_rows=0.02)}, 1 << 24)
    assert len(list(read_piece(piece, dropped))) == 96
    assert dropped.counts == {"bad_row": 2, "row_without_text": 2}
    assert "a.jsonl, line 51: not JSON (Expecting property name" in dropped.samples["bad_row"][0]
    with pytest.raises(ConfigError, match=r"line 51: not JSON .*; 2 of 100 rows here .* allows a share of 0\.019"):
        read(tmp_path, kind="jsonl", bad_rows=0.019)
    with pytest.raises(ConfigError, match=r"no field 'body' \(corpus.text_field\); it has text; 99 of 100 rows"):
        read(tmp_path, kind="jsonl", bad_rows=0.5, text_field="body")


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, indent: int | None) -> None:
    monkeypatch.setattr(streams, "_BLOCK", block)
    rows = [{"text": f'Röw [{number}], "{{quoted".'} for number in range(20)]
    for mark in ("", "\ufeff"):
        (tmp_path / "a.json").write_text(mark + json.dumps(rows, indent=indent, ensure_ascii=False))
        assert read(tmp_path / "a.json", kind="jsonl") == [[row["text"]] for row in rows]
    (tmp_path / "empty.json").write_text("[]\n")
    assert read(tmp_path / "empty.json", kind="jsonl") == []


@pytest.mark.parametrize("cut", [1, 30, -1])
def test_a_broken_json_array(tmp_path: Path, cut: int) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"text": "One."}, {"text": "Two."}])[:cut])
    with pytest.raises(
        ConfigError, match=r"a\.json: (value \d of the array is not JSON .*|the array does not end); mend"
    ):
        read(tmp_path / "a.json", kind="jsonl", bad_rows=0.5)


@pytest.mark.parametrize("block", [1, 2, 1000])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1} {"a": 2}]', "behind value 1 of the array comes '{', no comma"),
        ("[1, 2", "the array does not end"),
        ("[1, 2,", "value 3 of the array is not JSON"),
        ("[1, 2,]", "value 3 of the array is not JSON"),
        ("[,1]", "value 1 of the array is not JSON"),
        ("[1,,2]", "value 2 of the array is not JSON"),
        ("[1, 2]\n[3]", r"'\[' follows the end of the array, after value 2"),
        ("[] x", "'x' follows the end of the array, after value 0"),
        ("[" * 100_000, "value 1 of the array is not JSON .JSON nested too deep"),
    ],
)
def test_nothing_of_a_json_array_is_passed_over(text: str, message: str, block: int) -> None:
    blocks = [text[start : start + block] for start in range(0, min(len(text), 50), block)] + [text[50:]]
    with pytest.raises(BadRowError, match=message):
        list(json_array(blocks))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_numbers_of_any_length(tmp_path: Path, name: str) -> None:
    rows = ",\n".join(f'{{"text": "Row {number}.", "id": [{number * 5000}, -1.5, 2]}}' for number in "123")
    (tmp_path / name).write_text(f"[{rows}]" if name == "a.json" else rows.replace(",\n", "\n"))
    assert read(tmp_path, kind="jsonl") == [["Row 1."], ["Row 2."], ["Row 3."]]


def test_lines_that_an_open_quote_takes_are_counted(tmp_path: Path) -> None:
    lines = ["id,text", "1,One.", '2,"Two.', *(f"{number},More." for number in range(3, 103))]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"row 2: not CSV .unexpected end of data.; 101 of 102 rows"):
        read(tmp_path, kind="csv", bad_rows=0.5)


def test_a_name_for_two_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text,text\n1,One.,Two.\n")
    with pytest.raises(ConfigError, match=r"a\.csv: two fields have the name 'text'; rename one of them"):
        read(tmp_path / "a.csv", kind="csv")
    assert read(tmp_path / "a.csv", kind="csv", text_field="id") == [["1"]]
    table = pyarrow.table([["One."], ["Two."]], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    with pytest.raises(ConfigError, match=r"b\.parquet: two fields have the name 'text'"):
        read(tmp_path / "b.parquet", kind="parquet")


def test_rows_of_bytes(tmp_path: Path) -> None:
    """As programs write them that do not say that a column is text; and columns that say so and are not UTF-8."""
    raw = pyarrow.array([b"One.", "Zwö.".encode(), b"\xff", b"Three."])
    as_text = pyarrow.StringArray.from_buffers(4, *raw.buffers()[1:])
    for name, column in (("a", raw), ("b", as_text)):
        pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / f"{name}.parquet")
        path = tmp_path / f"{name}.parquet"
        assert read(path, kind="parquet", bad_rows=0.3) == [["One."], ["Zwö."], ["Three."]]
        with pytest.raises(
            ConfigError, match=r"row 3 of row group 0: .* is not UTF-8 .invalid start byte.; 1 of 3 rows"
        ):
            read(path, kind="parquet")


def test_a_file_name_that_is_not_utf_8(tmp_path: Path) -> None:
    text = "\n\n".join(f"Document {number}." for number in range(50))
    for name in (b"a\xff.txt", b"b\xff.txt.gz"):
        content = gzip.compress(text.encode()) if name.endswith(b"gz") else text.encode()
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(content)
    assert len(corpora_fingerprint({"corpus": corpus(tmp_path)})) == 64
    found = documents_of(tmp_path)
    assert len(found) == 100
    (tmp_path / "chunk").write_bytes(documents.write_chunk(found))
    assert [again.name for again in documents.read_chunk(tmp_path / "chunk")] == [first.name for first in found]


def test_what_could_not_be_read_is_told() -> None:
    dropped = Dropped()
    dropped.add("bad_row", "corpus file a, row 1: not JSON", 2)
    dropped.add("line_too_long", "b, the line at byte 0")
    dropped.add("fragment", "Heading")
    assert warn_of_losses(dropped.as_record()) == [
        "left out: 2 broken rows (corpus.bad_rows); the first: corpus file a, row 1: not JSON",
        "left out: 1 lines of more than 33,554,432 bytes, which are not read; divide them; the first: b, the line at "
        "byte 0",
    ]


def test_csv_and_tsv(tmp_path: Path) -> None:
    rows = [["1", 'A "quoted", text.\nSecond line.'], ["2", ""], ["3", "Plain."]]
    for name, dialect in (("a.csv", "excel"), ("b.tsv.gz", "excel-tab")):
        written = io.StringIO()
        csv.writer(written, dialect).writerows([["id", "text"], *rows])
        content = written.getvalue().encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
        expected = [['A "quoted", text.', "Second line."], ["Plain."]]
        assert read(tmp_path / name, kind="csv") == expected
    assert read(tmp_path, kind="csv", text_field="id+text")[0] == ["1", 'A "quoted", text.', "Second line."]
    (tmp_path / "a.csv").write_text("id,text\n1,a,b\n2,c\n")
    assert read(tmp_path / "a.csv", kind="csv", bad_rows=0.5) == [["c"]]
    with pytest.raises(ConfigError, match=r"a\.csv, row 1: 3 fields, but the first row names 2; 1 of 1 rows"):
        read(tmp_path / "a.csv", kind="csv")


@pytest.mark.parametrize("name", ["a.json", "a.csv"])
def test_large_files_that_cannot_be_cut_are_chunked(tmp_path: Path, name: str) -> None:
    """As compressed ones; JSON lines are cut at lines."""
    rows = [f"Row {number} of text." for number in range(500)]
    as_json = json.dumps([{"text": row} for row in rows])
    (tmp_path / name).write_text(as_json if name == "a.json" else "text\n" + "\n".join(rows))
    kind = {"a.json": "jsonl", "a.csv": "csv"}[name]
    pieces = plan_pieces({"corpus": corpus(tmp_path, kind=kind, documents="file")}, 1000)
    assert [needs_chunks(piece, 1000) for piece in pieces] == [True]
    (tmp_path / name).unlink()
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows))
    pieces = plan_pieces({"corpus": corpus(tmp_path, kind="jsonl", documents="file")}, 1000)
    assert len(pieces) > 10
    assert not any(needs_chunks(piece, 1000) for piece in pieces)
    assert [document.paragraphs for piece in pieces for document in read_piece(piece, Dropped())] == [[r] for r in rows]


@pytest.mark.parametrize("piece_bytes", [1 << 24, 10])
def test_a_document_a_line(tmp_path: Path, piece_bytes: int) -> None:
    (tmp_path / "a.txt").write_text("BP 74/80\n\nPt c/o SOB.  x1\nthe last")
    expected = [["BP 74/80"], ["Pt c/o SOB. x1"], ["the last"]]
    for lines in ("paragraph", "wrapped", "sentence"):
        assert read(tmp_path, piece_bytes, documents="line", lines=lines) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "xml"},
        {"documents": "page"},
        {"lines": "word"},
        {"path": None},
        {"path": ""},
        {"lines": "sentence", "kind": "jsonl", "documents": "file"},
        {"documents": "line", "kind": "csv"},
    ],
)
def test_options_are_checked(change: dict) -> None:
    with pytest.raises(ConfigError, match=rf"corpus\.{next(iter(change))}"):
        corpus("x", **change) if "path" not in change else CorpusConfig(**{**corpus("x").__dict__, **change})


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One.")
    first = corpora_fingerprint({"a": corpus(tmp_path)})
    assert corpora_fingerprint({"a": corpus(tmp_path)}) == first
    (tmp_path / "a.txt").write_text("Two two.")
    assert corpora_fingerprint({"a": corpus(tmp_path)}) != first


@pytest.mark.parametrize("piece_bytes", [7, 50, 200, 1000])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_pieces_of_a_file_are_the_whole_file(tmp_path: Path, kind: str, end: str, piece_bytes: int) -> None:
    """Wherever a file is divided into pieces, every document is read once and complete."""
    texts = [[f"Document {number} line {line}." for line in range(1 + number % 4)] for number in range(40)]
    if kind == "text":
        blocks = [end.join(lines) for lines in texts]
        content = (end + end).join(blocks[:20]) + end * 5 + (end + end).join(blocks[20:])
    else:
        content = end.join(json.dumps({"text": "\n".join(lines)}) for lines in texts)
    path = tmp_path / f"a.{kind if kind == 'jsonl' else 'txt'}"
    path.write_bytes(content.encode())
    assert len(plan_pieces({"c": corpus(path, kind=kind)}, piece_bytes)) > 1
    assert read(path, piece_bytes, kind=kind) == texts


COMPRESSORS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda raw: zstandard.ZstdCompressor(write_checksum=True).compress(raw),
}


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_compressed_files(tmp_path: Path, suffix: str) -> None:
    compress = COMPRESSORS[suffix]
    rows = [json.dumps({"text": f"Text {number}."}).encode() + b"\n" for number in range(3000)]
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(compress(b"".join(rows[:1000])) + compress(b"".join(rows[1000:])))
    assert read(tmp_path, kind="jsonl") == [[f"Text {number}."] for number in range(3000)]


@pytest.mark.parametrize("fault", ["truncated", "corrupted", "not compressed"])
@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_damaged_files(tmp_path: Path, suffix: str, fault: str) -> None:
    rng = np.random.default_rng(0)
    raw = "".join(f"{number:x}. " for number in rng.integers(0, 1 << 60, 20_000)).encode()
    whole = bytearray(COMPRESSORS[suffix](raw))
    if fault == "truncated":
        whole = whole[: len(whole) // 2]
    elif fault == "corrupted":
        whole[len(whole) // 2 : len(whole) // 2 + 64] = b"\x55" * 64
    else:
        whole = bytearray(raw)
    path = tmp_path / f"a.txt.{suffix}"
    path.write_bytes(whole)
    with pytest.raises(ConfigError, match=rf"{path.name} (is damaged|ends at byte|has a NUL|is not UTF-8)"):
        read(path)


def test_a_chunk_holds_documents_of_any_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LONGEST_LINE", 1000)
    found = [Document("a", "b", [f"{word} " * 500]) for word in ("one", "two")]
    (tmp_path / "chunk").write_bytes(documents.write_chunk(found))
    again = documents.read_chunk(tmp_path / "chunk")
    assert [document.paragraphs for document in again] == [document.paragraphs for document in found]


def test_too_long_lines_are_dropped_and_counted(tmp_path: Path) -> None:
    with open(tmp_path / "a.txt", "wb") as file:
        file.write(b"One.\n\n")
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b"\n\nTwo.\n")
    dropped = Dropped()
    (piece,) = plan_pieces({"c": corpus(tmp_path / "a.txt")}, 1 << 30)
    assert [document.paragraphs for document in read_piece(piece, dropped)] == [["One."], ["Two."]]
    assert dropped.counts == {"line_too_long": 1}
    assert "a.txt, the line at byte 6" in dropped.samples["line_too_long"][0]


@pytest.mark.parametrize("filling", ["x", "x. \n"])
def test_text_longer_than_many_pieces_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filling: str
) -> None:
    """One line or document over 200 pieces: without care, each piece would read on to its end."""
    text = "One.\n\n" + filling * (2_000_000 // len(filling)) + "\n\nTwo.\n"
    (tmp_path / "a.txt").write_text(text)
    read_bytes = 0

    def counted(*arguments: object) -> Iterator[bytes]:
        nonlocal read_bytes
        for block in streams.blocks(*arguments):  # type: ignore[arg-type]
            read_bytes += len(block)
            yield block

    monkeypatch.setattr(documents, "blocks", counted)
    monkeypatch.setattr(streams, "_BLOCK", 1000)
    assert read(tmp_path / "a.txt", 10_000) == [["One."], text.split("\n\n")[1].split(), ["Two."]]
    assert read_bytes < 4 * len(text)


def test_huge_documents_are_divided_without_loss(tmp_path: Path) -> None:
    line = "word " * 20_000
    (tmp_path / "a.txt").write_text(f"{line}\n" * 250)
    for lines in ("paragraph", "wrapped"):
        documents = read(tmp_path / "a.txt", documents="file", lines=lines)
        assert len(documents) > 2
        assert sum(text.count("word") for paragraphs in documents for text in paragraphs) == 250 * 20_000


def test_tables(tmp_path: Path) -> None:
    """Parquet with small row groups, and what ``datasets`` saved, give the same documents."""
    texts = [f"Row {number}.\nSecond line." for number in range(50)] + ["", "Last."]
    table = pyarrow.table({"text": [*texts, None], "id": list(range(53))})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    expected = [[f"Row {number}.", "Second line."] for number in range(50)] + [["Last."]]
    assert read(tmp_path / "a.parquet", kind="parquet") == expected
    assert len(plan_pieces({"c": corpus(tmp_path, kind="parquet")}, 400)) > 2
    assert read(tmp_path, 400, kind="parquet") == expected
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    assert read(tmp_path / "saved", kind="dataset") == expected
    datasets.DatasetDict({"train": datasets.Dataset(table)}).save_to_disk(tmp_path / "splits")
    assert read(tmp_path / "splits", kind="dataset") == expected


@pytest.mark.parametrize(
    ("kind", "fault", "message"),
    [
        ("parquet", "truncated", r"a\.parquet cannot be read as parquet"),
        ("parquet", "corrupted", r"a\.parquet is damaged in row groups"),
        ("parquet", "field", r"no field 'body' \(corpus\.text_field\); it has text, id"),
        ("parquet", "type", r"field 'id' holds int, not text"),
        ("dataset", "field", r"no field 'body' \(corpus\.text_field\); it has text, id"),
        ("dataset", "empty", r"corpus\.path .*saved: .*/train/state\.json lists no data files, so it has no rows"),
        ("dataset", "split", r"corpus\.split is 'train', not in .*; allowed: other"),
    ],
)
def test_bad_tables(tmp_path: Path, kind: str, fault: str, message: str) -> None:
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(97, 122, 2000))) for _ in range(50)]
    table = pyarrow.table({"text": texts, "id": list(range(50))})
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(table, path, compression="zstd", use_dictionary=False)
    changes: dict[str, object] = {"text_field": {"field": "body", "type": "id"}.get(fault, "text")}
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:3000])
    elif fault == "corrupted":
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2 - 2000 : len(raw) // 2] = b"\0" * 2000
        path.write_bytes(raw)
    if kind == "dataset":
        split = "other" if fault == "split" else "train"
        rows = datasets.Dataset(table.slice(0, 0 if fault == "empty" else len(table)))
        datasets.DatasetDict({split: rows}).save_to_disk(tmp_path / "saved")
        path = tmp_path / "saved"
    with pytest.raises(ConfigError, match=message):
        read(path, kind=kind, **changes)


def test_a_piece_decodes_no_line_of_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "One."}\n\xff\n')
    first, second = plan_pieces({"c": corpus(path, kind="jsonl")}, 10)
    assert [document.paragraphs for document in read_piece(first, Dropped())] == [["One."]]
    with pytest.raises(ConfigError, match=r"not UTF-8 at byte 17 \(0xff"):
        list(read_piece(second, Dropped()))
