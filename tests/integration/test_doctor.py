"""The doctor with good and with damaged shards."""

import shutil
from pathlib import Path

import pytest
import torch

from bert_pretrain.distributed.world import World
from bert_pretrain.doctor import checks, system
from tests.conftest import TEST_RECIPE, run_module

ALONE = World(0, 0, 1, torch.device("cpu"))


def doctor(tmp_path: Path, shard_dir: Path, *options: str) -> tuple[int, dict[str, list[str]], str]:
    """Exit status, checks by level, and the whole output."""
    folders = (f"run_dir={tmp_path / 'run'}", f"data.dir={shard_dir}")
    done = run_module("bert_pretrain.doctor", *TEST_RECIPE, *folders, *options)
    levels: dict[str, list[str]] = {"ok": [], "warn": [], "fail": []}
    for line in done.stdout.splitlines():
        level, _, rest = line.partition(" ")
        if level in levels:
            levels[level].append(rest.strip())
    return done.returncode, levels, done.stdout + done.stderr


def test_all_checks_pass(tmp_path: Path, shard_dir: Path) -> None:
    status, levels, printed = doctor(tmp_path, shard_dir, "batch.global_batch_size=65536")
    assert status == 0, printed
    assert levels["fail"] == []
    assert any(check.startswith("versions") for check in levels["ok"]), printed
    assert any(check.startswith("program") and "bert-pretrain " in check for check in levels["ok"]), printed
    assert "two steps of 8 samples (65,536 in the run; here 2 micro-batches a rank)" in printed
    assert any(check.startswith("two steps") for check in levels["ok"]), printed
    assert not (tmp_path / "run" / "checkpoints").exists(), "nothing is left over"


def test_a_damaged_shard_is_named(tmp_path: Path, shard_dir: Path) -> None:
    own = shutil.copytree(shard_dir, tmp_path / "shards")
    shard = sorted(own.glob("*.hdf5"))[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(bytes(content))
    status, levels, printed = doctor(tmp_path, own)
    assert status == 1, printed
    assert any(check.startswith("shards") and shard.name in check for check in levels["fail"]), printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(("fixed", "named"), [((99, 0), True), ((1, 0), False)])
def test_a_known_fault_of_an_installed_version_is_named(
    monkeypatch: pytest.MonkeyPatch, fixed: tuple[int, int], named: bool
) -> None:
    monkeypatch.setattr(system, "KNOWN_FAULTS", (("numpy", (0, 1), fixed, "sums are wrong"),))
    found = system.versions(None, ALONE)  # type: ignore[arg-type]
    assert ("sums are wrong" in found.found) == named


def test_what_a_maintainer_asks_first_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth7")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("WANDB_API_KEY", "another_secret")
    found = system.system(None, ALONE).found  # type: ignore[arg-type]
    assert "NCCL_SOCKET_IFNAME=eth7" in found
    assert "secret" not in found
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    assert f"of {int(memory.split()[1]) / 2**20:.1f} GiB memory available" in found


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ['scipy>=1.13; extra == "study"', "torch>=2.11", 'nowhere-at-all>=1; extra == "data"']
    monkeypatch.setattr(system, "requires", lambda _: needs)
    found = system.program(None, ALONE).found  # type: ignore[arg-type]
    assert found.endswith("; without the extra data (nowhere-at-all)")


def test_a_rank_that_fails_alone_in_an_exchange_says_so_and_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """It must not wait at the end of the check for ranks that wait for it in the middle."""

    def exchange(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(checks, "WITH_COLLECTIVES", (exchange,))
    with pytest.raises(SystemExit) as left:
        checks.checked("exchange", exchange, None, World(1, 1, 2, torch.device("cpu")))  # type: ignore[arg-type]
    assert left.value.code == 1
    assert capsys.readouterr().out.startswith("fail  exchange         out of memory (rank 1 on ")
