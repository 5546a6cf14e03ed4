"""The page of a run that goes on, over HTTP."""

import http.client
import json
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bert_pretrain.errors import ConfigError
from bert_pretrain.html_page import Html
from bert_pretrain.report import live
from bert_pretrain.report.run_facts import headline, read_run
from tests.bert_pretrain.report.made_runs import FINISHED, START, evaluation, make_run, start
from tests.forked import HANGS, Forked


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bert_pretrain.report.page.drawn", lambda _: Html('<svg viewBox="0 0 1 1"></svg>'))
    monkeypatch.setattr(live, "_SHARE", 0)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "a", FINISHED[:4], [start(START)], running=True)


@pytest.fixture
def server(run: Path) -> Iterator[live.LiveServer]:
    with live.LiveServer(live.LivePage([run]), "127.0.0.1", 0) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def get(server: live.LiveServer, path: str, host: str | None = None) -> tuple[int, str, str]:
    """Status, content and policy."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=HANGS)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), answer.getheader("Content-Type", "")


def test_the_page_changes_with_the_run(server: live.LiveServer, run: Path) -> None:
    status, page, kind = get(server, "/")
    assert (status, kind) == (200, "text/html; charset=utf-8")
    assert "3.2500" not in page
    assert get(server, "/version")[:2] == (200, "1")
    assert '!=="1"' in page  # the script compares the number
    assert "connect-src 'self'" in page
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(evaluation(20, 3.25)) + "\n")
    assert get(server, "/version")[1] == "2"
    assert "3.2500" in get(server, "/")[1]
    assert get(server, "/version")[1] == "2"


def test_a_browser_that_goes_away_is_no_error(
    server: live.LiveServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(server.page, "current", lambda: (1, "x" * (64 << 20)))
    handled = threading.Event()
    monkeypatch.setattr(server, "shutdown_request", lambda request: (handled.set(), request.close()))
    with socket.create_connection(server.server_address) as browser:
        browser.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closes with a reset
        browser.sendall(b"GET / HTTP/1.0\r\nHost: localhost:1\r\n\r\n")
        browser.recv(10)
    assert handled.wait(HANGS)
    assert capsys.readouterr().err == ""


def test_the_wall_time_is_that_of_one_moment(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = read_run(run)
    before = headline(found)
    monkeypatch.setattr(time, "time", lambda: found.until + 3600)  # the figures took so long
    assert headline(found) == before


def test_nothing_else_is_served(server: live.LiveServer) -> None:
    for path in ("/config.yaml", "/../a/config.yaml", "//etc/passwd"):
        assert get(server, path)[0] == 404


def test_a_page_of_another_site_does_not_read_it(server: live.LiveServer) -> None:
    port = server.server_address[1]
    assert get(server, "/", f"evil.example:{port}")[0] == 403
    assert get(server, "/", f"localhost:{port}")[0] == 200


def test_a_run_that_is_gone_is_told_and_served_again(server: live.LiveServer, run: Path) -> None:
    (run / "config.yaml").rename(run / "kept")
    assert get(server, "/version")[0] == 503
    (run / "kept").rename(run / "config.yaml")
    assert get(server, "/version")[0] == 200


def test_an_address_that_cannot_be_listened_at(run: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"host 127.0.0.1, port {port}: .*give another, or port=0"):
            live.serve([run], "127.0.0.1", port)
    with pytest.raises(ConfigError, match=r"host no\.such\.host\.invalid"):
        live.serve([run], "no.such.host.invalid", 0)


def test_ctrl_c_ends_it_with_one_line(run: Path) -> None:
    command = Forked("bert_pretrain.report", f"run_dir={run}", "--live", "port=0")
    while command.is_running() and "serving http://127.0.0.1:" not in command.stdout:
        time.sleep(0.05)
    command.signal(0, signal.SIGINT)
    done = command.wait()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1:] == ["", "stopped serving; the runs are not touched"]
    assert not (run / "report.html").exists()
