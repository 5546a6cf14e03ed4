"""Stop requests by signals and by the time limit."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from bert_pretrain.distributed import preemption
from bert_pretrain.distributed.preemption import StopRequest
from tests.conftest import HANGS, ROOT

CODE = """if True:
    import signal, time
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    from bert_pretrain.distributed.preemption import StopRequest
    stop = StopRequest().install_handlers()
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    print("requested", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def process() -> Iterator[subprocess.Popen]:
    with subprocess.Popen([sys.executable, "-c", CODE], cwd=ROOT, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "ready\n"
        yield started
        started.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_one_signal_requests_a_stop_and_kills_nothing(process: subprocess.Popen, number: signal.Signals) -> None:
    os.kill(process.pid, number)
    assert process.stdout is not None
    assert process.stdout.readline() == "requested\n"
    assert process.poll() is None


def test_under_nohup_the_end_of_the_terminal_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = []
    monkeypatch.setattr(preemption.signal, "getsignal", lambda _: signal.SIG_IGN)
    monkeypatch.setattr(preemption.signal, "signal", lambda number, _: installed.append(number))
    preemption.handle_stop_signals(lambda *_: None)
    assert installed == [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]


def test_a_second_interrupt_kills_the_process(process: subprocess.Popen) -> None:
    os.kill(process.pid, signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "requested\n"
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=HANGS) == 128 + signal.SIGINT


def test_the_time_limit_requests_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(preemption, "time", SimpleNamespace(monotonic=lambda: now))
    stop = StopRequest()
    stop.stop_after(None)
    assert not stop.requested
    stop.stop_after(2.0)
    now = 219.0
    assert not stop.requested
    now = 221.0
    assert stop.requested
