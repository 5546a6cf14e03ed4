"""Text streamed from a hub on loopback, which fails now and then: a stand-in for huggingface.co."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import pytest

from tests.conftest import ROOT

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """The data set a/b, whose files are those in ``folder``: the answers that the library needs."""

    protocol_version = "HTTP/1.1"
    folder: Path
    failing = 0
    """So many requests for a part of a file still get the status 503."""

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, files = self.path.partition("?")[0], sorted(self.folder.iterdir())
        found = re.fullmatch(r"/datasets/a/b/resolve/[^/]+/(.+)", path)
        if re.fullmatch(rf"/api/datasets/a/b/tree/{SHA}", path):
            rows = [{"type": "file", "path": file.name, "size": file.stat().st_size, "oid": SHA} for file in files]
            self.answer(json.dumps(rows).encode(), Content_Type="application/json")
        elif re.fullmatch(r"/api/datasets/a/b(/revision/\w+)?", path):
            info = {"id": "a/b", "sha": SHA, "siblings": [{"rfilename": file.name} for file in files]}
            self.answer(json.dumps(info).encode(), Content_Type="application/json")
        elif found and (self.folder / found[1]).is_file():
            self.file((self.folder / found[1]).read_bytes(), hashlib.sha1(found[1].encode()).hexdigest())
        else:
            self.answer(b"{}", 404, X_Error_Code="EntryNotFound")

    do_HEAD = do_POST = do_GET

    def file(self, body: bytes, tag: str) -> None:
        known = {"ETag": f'"{tag}"', "X_Repo_Commit": SHA, "Accept_Ranges": "bytes"}
        part = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part is None:
            return self.answer(body, **known)
        if Hub.failing:
            Hub.failing -= 1
            return self.answer(b"", 503)
        first, last = int(part[1]), min(int(part[2] or len(body)), len(body) - 1)
        return self.answer(body[first : last + 1], 206, Content_Range=f"bytes {first}-{last}/{len(body)}", **known)


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    Hub.folder = tmp_path / "files"
    Hub.folder.mkdir()
    for number in range(2):
        rows = {"text": [f"file {number} row {row}" for row in range(600)]}
        datasets.Dataset.from_dict(rows).to_parquet(Hub.folder / f"train-{number:05d}-of-00002.parquet")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


CODE = """
from bert_pretrain.data.ready_made_options import ReadyMadeConfig
from bert_pretrain.data.row_source import TextFiles, open_source
config = ReadyMadeConfig(kind="streamed")
source = open_source(config, "hf://a/b")
print(source.origin)
text = TextFiles(source, "train", config)
for file in range(text.files):
    print(*(line for _, lines in text.read(file, 3) for line in lines), sep="\\n")
"""


def test_every_row_comes_from_the_hub_once_though_it_fails(endpoint: str, tmp_path: Path) -> None:
    Hub.failing = 2
    variables = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    variables |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = done.stdout.splitlines()
    assert found[:2] == [f"hf://datasets/a/b@{SHA}/train-{number:05d}-of-00002.parquet" for number in range(2)]
    assert found[2:] == [f"file {number} row {row}" for number in range(2) for row in range(3, 600)]
    assert Hub.failing == 0
