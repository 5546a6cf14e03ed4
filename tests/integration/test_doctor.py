"""The doctor on a machine that is well, and on shards that are not."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT, TEST_RECIPE


def doctor(tmp_path: Path, shard_dir: Path, *options: str) -> tuple[int, dict[str, list[str]], str]:
    """Exit status, checks by level, and all that was printed."""
    done = subprocess.run(
        [sys.executable, "-m", "bert_pretrain.doctor", *TEST_RECIPE, "device=cpu", f"run_dir={tmp_path / 'run'}",
         f"data.dir={shard_dir}", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    levels: dict[str, list[str]] = {"ok": [], "warn": [], "fail": []}
    for line in done.stdout.splitlines():
        level, _, rest = line.partition(" ")
        if level in levels:
            levels[level].append(rest.strip())
    return done.returncode, levels, done.stdout + done.stderr


def test_a_machine_that_is_well(tmp_path: Path, shard_dir: Path) -> None:
    status, levels, printed = doctor(tmp_path, shard_dir)
    assert status == 0, printed
    assert levels["fail"] == []
    assert any(check.startswith("two steps") for check in levels["ok"]), printed
    assert not (tmp_path / "run" / "checkpoints").exists(), "it leaves nothing behind"


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
