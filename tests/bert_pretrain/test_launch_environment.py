"""Variables of a launcher: complete, absent, or left over from another job."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bert_pretrain.errors import ConfigError
from bert_pretrain.launch_environment import Launch, check_interface, local_rank, read_launch
from tests.conftest import HANGS, ROOT, TEST_RECIPE

COMPLETE = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "::1",
    "MASTER_PORT": "29500",
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in COMPLETE:
        monkeypatch.delenv(name, raising=False)


def use(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_a_complete_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, COMPLETE)
    assert read_launch() == Launch(rank=3, size=4, local_rank=1, local_size=2)


def test_without_a_launcher_the_world_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, {"MASTER_ADDR": "node0", "MASTER_PORT": "1"})
    assert read_launch() == Launch()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "3"}, "the environment has RANK='3', but not WORLD_SIZE, LOCAL_RANK"),
        ({"WORLD_SIZE": "2"}, "has WORLD_SIZE='2', but not RANK"),
        ({"WORLD_SIZE": ""}, "has WORLD_SIZE='', but not RANK, WORLD_SIZE"),
        ({"LOCAL_RANK": "1"}, "after: unset LOCAL_RANK"),
        (COMPLETE | {"RANK": "4"}, "RANK is 4; allowed: below WORLD_SIZE (4)"),
        (COMPLETE | {"RANK": "-1"}, "RANK is '-1'; allowed: a number"),
        (COMPLETE | {"RANK": "two"}, "RANK is 'two'; allowed: a number"),
        (COMPLETE | {"LOCAL_RANK": "2"}, "LOCAL_RANK is 2; allowed: below LOCAL_WORLD_SIZE (2)"),
        (COMPLETE | {"WORLD_SIZE": "0", "RANK": "0"}, "WORLD_SIZE is 0; allowed: 1 or more"),
        (COMPLETE | {"MASTER_PORT": "70000"}, "MASTER_PORT is 70000; allowed: 1 to 65535"),
    ],
)
def test_what_is_left_over_is_refused(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str) -> None:
    use(monkeypatch, variables)
    with pytest.raises(ConfigError) as error:
        read_launch()
    assert message in str(error.value)
    assert local_rank() == 0  # a stray one must not silence the message


def test_an_interface_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo,eth99")
    with pytest.raises(ConfigError, match=r"GLOO_SOCKET_IFNAME is 'lo,eth99'; allowed: the network interfaces of .*lo"):
        check_interface()


def test_a_port_in_use_is_one_message(tmp_path: Path, shard_dir: Path) -> None:
    """Ranks started by hand, on a port that another program has."""

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        variables = COMPLETE | {
            "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(other.getsockname()[1]),
        }  # fmt: skip
        command = [sys.executable, "-m", "bert_pretrain.pretrain", *TEST_RECIPE, f"data.dir={shard_dir}"]
        done = subprocess.run(
            [*command, f"run_dir={tmp_path}"], cwd=ROOT, env=os.environ | variables | {"TORCH_CPP_LOG_LEVEL": "FATAL"},
            capture_output=True, text=True, timeout=HANGS, check=False,
        )  # fmt: skip
    assert done.returncode == 2, done.stderr
    messages = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1, done.stderr
    assert "the ranks did not meet at 127.0.0.1" in messages[0]
    assert "Traceback" not in done.stderr
