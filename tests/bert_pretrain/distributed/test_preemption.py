"""Requests to stop, as a process hears them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from bert_pretrain.distributed.preemption import StopRequest
from tests.conftest import ROOT

CODE = """if True:
    import time
    from bert_pretrain.distributed.preemption import StopRequest
    stop = StopRequest().install_handlers()
    print("listening", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    print("asked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def process() -> Iterator[subprocess.Popen]:
    with subprocess.Popen([sys.executable, "-c", CODE], cwd=ROOT, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "listening\n"
        yield started
        started.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_one_signal_asks_and_ends_nothing(process: subprocess.Popen, number: signal.Signals) -> None:
    os.kill(process.pid, number)
    assert process.stdout is not None
    assert process.stdout.readline() == "asked\n"
    assert process.poll() is None


def test_a_second_interrupt_ends_at_once(process: subprocess.Popen) -> None:
    os.kill(process.pid, signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "asked\n"
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=20) == 128 + signal.SIGINT


def test_the_end_of_the_time_asks() -> None:
    stop = StopRequest()
    stop.stop_after(None)
    assert not stop.requested
    stop.stop_after(1.0 / 600)
    assert not stop.requested
    time.sleep(0.15)
    assert stop.requested
