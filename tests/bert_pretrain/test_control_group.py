"""The limits of a container, read from a folder as the system shows it."""

from pathlib import Path

import pytest
import torch

from bert_pretrain import control_group
from bert_pretrain.control_group import available_cores, core_limit, memory_limit
from bert_pretrain.distributed.device import set_up_device
from data_prep import preparation


def test_the_memory_limit_of_a_container(tmp_path: Path) -> None:
    assert memory_limit(tmp_path) == 0
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_limit(tmp_path) == 0
    (tmp_path / "memory.max").write_text(f"{3 << 30}\n")
    assert memory_limit(tmp_path) == 3 << 30


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000\n", 0), ("400000 100000\n", 4), ("150000 100000\n", 2), ("1000 100000\n", 1), ("damaged", 0)],
)
def test_the_cores_of_a_container(tmp_path: Path, text: str, cores: int) -> None:
    assert core_limit(tmp_path) == 0
    (tmp_path / "cpu.max").write_text(text)
    assert core_limit(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [(-1, 0), (250000, 3), (1000, 1)])
def test_the_cores_of_a_container_of_version_1(tmp_path: Path, quota: int, cores: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert core_limit(tmp_path) == cores


def test_threads_are_as_many_as_the_container_has_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On 64 cores; the affinity counts where it is less."""
    monkeypatch.setattr(control_group.os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(available_cores, "__defaults__", (tmp_path,))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    for text in ("max 100000", "400000 100000", "50000 100000", "9900000 100000"):
        (tmp_path / "cpu.max").write_text(text)
        set_up_device(torch.device("cpu"), 2, 2)
    assert threads == [32, 2, 1, 32]
    assert preparation.available_cores is available_cores
