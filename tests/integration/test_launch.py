"""The launcher and the shell scripts, in new interpreters: signals, exit statuses, messages printed once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bert_pretrain.checkpoint.files import find_fault
from bert_pretrain.checkpoint.store import CheckpointStore, load_progress
from bert_pretrain.distributed.launch import main as launcher  # noqa: F401  # fails early where torch's interface has changed
from tests.conftest import HANGS, ROOT, TEST_RECIPE

ENVIRONMENT = {**os.environ, "PYTHON": sys.executable, "TORCH_CPP_LOG_LEVEL": "ERROR", "JOIN_SECONDS": "300"}


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen]]:
    """Start a command; at the end of the test, it and its children are killed."""
    processes: list[subprocess.Popen] = []

    def start(*command: str, **environment: str) -> subprocess.Popen:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**ENVIRONMENT, **environment},
        )  # fmt: skip
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            for pid in [*workers(process), process.pid]:
                os.kill(pid, signal.SIGKILL)
            process.wait()


def workers(process: subprocess.Popen) -> list[int]:
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in text.split()]


def options(tmp_path: Path, shard_dir: Path) -> list[str]:
    kept = [option for option in TEST_RECIPE if not option.startswith(("schedule.total_steps", "checkpoint.every"))]
    return [*kept, f"data.dir={shard_dir}", f"run_dir={tmp_path / 'run'}"]


def test_a_signal_to_one_rank_stops_all_after_the_same_step(
    tmp_path: Path, shard_dir: Path, started: Callable[..., subprocess.Popen]
) -> None:
    process = started(
        "scripts/pretrain_node.sh", *options(tmp_path, shard_dir), "schedule.total_steps=100000",
        "checkpoint.every_steps=100000", "training.evaluate_every_steps=100000", PROCESSES="2",
    )  # fmt: skip
    metrics = tmp_path / "run/metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and '"step": 5,' in metrics.read_text()):
        time.sleep(0.05)
    os.kill(workers(process)[-1], signal.SIGTERM)
    out = process.communicate(timeout=HANGS)[0]
    assert process.returncode == 75, out
    (found,) = CheckpointStore(tmp_path / "run/checkpoints", 1, None).all()
    step = load_progress(found).step
    assert step > 5
    assert find_fault(found) is None
    assert out.count(f"stopped on request after step {step}, which is saved") == 1
    assert "Traceback" not in out


def test_the_launcher_forwards_signals_to_its_children() -> None:
    code = """if True:
        import signal, subprocess
        from bert_pretrain.distributed.launch import forward
        children = [subprocess.Popen(["sleep", "60"], start_new_session=True) for _ in range(2)]
        forward(signal.SIGUSR1, None)
        assert [child.wait() for child in children] == [-signal.SIGUSR1] * 2
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stderr


def test_one_machine_needs_no_name_that_resolves() -> None:
    code = """if True:
        import socket, sys
        socket.getfqdn = lambda name="": "no.such.host.invalid"
        from bert_pretrain.distributed.launch import main
        shown = "import os; print(os.environ['MASTER_ADDR'])"
        main(["--standalone", "--nproc-per-node=2", "--no-python", sys.executable, "-c", shown])
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=HANGS)
    assert done.stdout.replace("\n", "") == "localhost" * 2, done.stderr  # the two may mix


@pytest.mark.parametrize(
    ("command", "environment", "mentions"),
    [
        (("pretrain_nodes.sh", "2", "2", "127.0.0.1", "recipe=demo"), {}, "NODE_RANK is '2'"),
        (("pretrain_nodes.sh", "2", "1", "127.0.0.1:9", "recipe=demo"), {"JOIN_SECONDS": "1"}, "meet at 127.0.0.1:9"),
        (("pretrain_nodes.sh", "2", "1", "no.such.host.invalid", "recipe=demo"), {}, "host.invalid' is not known"),
        (("pretrain_nodes.sh", "2", "1", "127.0.0.1", "recipe=demo"), {"INTERFACE": "eth99"}, "INTERFACE is 'eth99'"),
        (("pretrain_node.sh", "recipe=demo"), {"PROCESSES": "0"}, "PROCESSES is '0'"),
        (("pretrain_node.sh", "recipe=demo"), {"PYTHON": "/no/python"}, "PYTHON is '/no/python'"),
        (("slurm_two_phases.sh", "--nodes=2", "--", "recipe=demo"), {}, "two recipes are needed"),
        (("slurm_pretrain.sbatch", "recipe=demo"), {"SLURM_JOB_ID": ""}, "this is a job for sbatch"),
        (("slurm_prepare.sbatch", "corpus=text"), {"SLURM_JOB_ID": ""}, "this is a job for sbatch"),
    ],
)  # fmt: skip
def test_scripts_fail_early_with_one_message(
    command: tuple[str, ...], environment: dict[str, str], mentions: str, started: Callable[..., subprocess.Popen]
) -> None:
    process = started(f"scripts/{command[0]}", *command[1:], **environment)
    out = process.communicate(timeout=HANGS)[0]
    assert process.returncode == 2, out
    messages = [line for line in out.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1, out
    assert mentions in messages[0]


def test_an_error_of_all_ranks_is_printed_once(
    tmp_path: Path, shard_dir: Path, started: Callable[..., subprocess.Popen]
) -> None:
    kept = [option for option in options(tmp_path, shard_dir) if not option.startswith("batch.global")]
    process = started("scripts/pretrain_node.sh", *kept, "batch.global_batch_size=1", PROCESSES="2")
    out = process.communicate(timeout=HANGS)[0]
    assert process.returncode == 2, out
    messages = [line for line in out.splitlines() if "error: " in line]
    assert len(messages) == 1, out
    assert "batch.global_batch_size is 1, but there are 2 ranks" in messages[0]
