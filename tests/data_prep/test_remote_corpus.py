"""Corpora at addresses: the same shards as from the disk, faults waited out, nothing lost, changes told."""

import gzip
import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from bert_pretrain.data.shard_directory import read_manifest
from bert_pretrain.files import retry
from data_prep import corpus as corpus_module
from data_prep import prepare
from tests.data_prep.test_prepare import options, write_texts
from tests.web_server import WebServer


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(retry, "PAUSES", (0.01,) * 4)
    corpus_module._remote_files.cache_clear()
    yield
    corpus_module._remote_files.cache_clear()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebServer]:
    pytest.importorskip("aiohttp", reason="fsspec reads https:// with aiohttp (the extra remote)")
    with WebServer(tmp_path) as server:
        yield server


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    corpus_module._remote_files.cache_clear()
    monkeypatch.setattr(sys, "argv", ["prepare", *words])
    try:
        prepare.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.hdf5"))}


def make_kind(folder: Path, kind: str) -> str:
    """Random documents in files of a kind; the address below ``folder`` to give."""
    texts = write_texts(folder / "texts")
    documents = [block for path in sorted(texts.glob("*.txt")) for block in path.read_text().split("\n\n")]
    if kind == "parquet":
        table = pyarrow.table({"text": documents})
        pyarrow.parquet.write_table(table, folder / "rows.parquet", row_group_size=10)
        return "rows.parquet"
    if kind == "jsonl":
        lines = "".join(json.dumps({"text": document}) + "\n" for document in documents)
        (folder / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        return "rows.jsonl.gz"
    return "texts/"


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
def test_the_same_shards_as_from_the_disk(
    kind: str, tmp_path: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = make_kind(tmp_path, kind)
    more = (f"corpus={kind}", "piece_mb=0.004")
    assert run(monkeypatch, *options(tmp_path / name, tmp_path / "here", *more)) == 0
    web.faults.update({"0.txt": ["500", "good", "truncated"], "rows.parquet": ["503"], "rows.jsonl.gz": ["closed"]})
    words = options(tmp_path / name, tmp_path / "there", *more, f"corpus.path={web.address}/{name}")
    assert run(monkeypatch, *words) == 0
    assert shard_bytes(tmp_path / "there") == shard_bytes(tmp_path / "here")
    assert len(shard_bytes(tmp_path / "here")) > 1


def test_redirects_without_end(
    tmp_path: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def redirect(handler: BaseHTTPRequestHandler, **_: object) -> None:
        handler.send_response(302)
        handler.send_header("Location", handler.path)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    monkeypatch.setattr("tests.web_server._Handler._answer", redirect)
    assert run(monkeypatch, *options(tmp_path, tmp_path / "out", f"corpus.path={web.address}/a.txt")) == 2
    assert "a.txt cannot be read: the server redirects without end; correct the address" in capsys.readouterr().err


def test_a_server_gone_for_good_loses_nothing(
    tmp_path: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_texts(tmp_path / "texts")
    words = options(tmp_path, tmp_path / "out", f"corpus.path={web.address}/texts/", "piece_mb=0.004")
    web.faults["1.txt"] = ["good", *["500"] * 5]
    assert run(monkeypatch, *words) == 74
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {web.address}/texts/1.txt cannot be read (HTTP 500), also after")
    done = list((tmp_path / "out" / "corpus" / "text").glob("*.done.json"))
    assert done
    before = web.gets["0.txt"]
    assert run(monkeypatch, *words) == 0
    assert web.gets["0.txt"] - before < before  # the pieces that were done are not read again
    assert run(monkeypatch, *options(tmp_path / "texts", tmp_path / "here", "piece_mb=0.004")) == 0
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "here")


def test_changed_files_and_signed_addresses(
    tmp_path: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = write_texts(tmp_path / "texts") / "0.txt"
    address = f"{web.address}/texts/0.txt"
    assert run(monkeypatch, *options(tmp_path, tmp_path / "out", f"corpus.path='{address}?Signature=secret1'")) == 0
    manifest = (tmp_path / "out" / "manifest.json").read_text()
    assert "secret1" not in manifest + capsys.readouterr().out
    assert (read_manifest(tmp_path / "out") or {})["options"]["corpus"]["path"] == f"{web.address}/texts/0.txt"
    assert run(monkeypatch, *options(tmp_path, tmp_path / "out", f"corpus.path='{address}?Signature=secret2'")) == 0
    assert "reused" in capsys.readouterr().out
    text.write_text(text.read_text() + "\nOne more line.\n")
    assert run(monkeypatch, *options(tmp_path, tmp_path / "out", f"corpus.path={address}")) == 2
    assert "the corpus itself (its files, or the installed packages) has changed" in capsys.readouterr().err
