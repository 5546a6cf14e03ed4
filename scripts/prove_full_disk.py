"""A run whose disk becomes full: said, nothing lost, and the same command goes on when there is room again.

    sudo PYTHONPATH=. .venv/bin/python scripts/prove_full_disk.py RESULT.json

``run_dir`` is on a tmpfs that this script mounts, too small for all checkpoints of the run. Needs root; a minute.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from results_file import write_result
from safetensors.torch import load  # load_file would hold the disk

from bert_pretrain.checkpoint.files import find_fault
from bert_pretrain.checkpoint.store import CheckpointStore
from tests.conftest import TEST_RECIPE, make_shards

STEPS = 40


def run(run_dir: Path, data: Path) -> tuple[int, str]:
    """The command, always the same; its status and what it said."""
    options = [
        *TEST_RECIPE, f"data.dir={data}", f"run_dir={run_dir}", f"schedule.total_steps={STEPS}",
        "checkpoint.every_steps=4", "checkpoint.keep_last=100", "training.evaluate_every_steps=1000",
    ]  # fmt: skip
    command = [sys.executable, "-m", "bert_pretrain.pretrain", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def steps(run_dir: Path) -> list[int]:
    """The checkpoints, each whole."""
    found = CheckpointStore(run_dir / "checkpoints", 1, None).all()
    assert all(find_fault(path) is None for path in found)
    return [int(path.name[5:]) for path in found]


def main() -> None:
    """Fill, look, make room, go on, compare."""
    with tempfile.TemporaryDirectory(prefix="prove_full_disk.") as folder:
        work, data = Path(folder), make_shards(Path(folder) / "data")
        roomy, small = work / "roomy", work / "small"
        assert run(roomy, data)[0] == 0
        one = sum(file.stat().st_size for file in (roomy / "checkpoints/step_00000004").rglob("*") if file.is_file())
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={4 * one}", "tmpfs", str(small)], check=True)
        try:
            status, said = run(small / "run", data)
            full = steps(small / "run")
            faults = said.count("could not be written")
            assert status == 2, said
            assert "Traceback" not in said, said
            assert " MB are left there" in said or "No space left" in said, said
            assert full, said
            subprocess.run(["mount", "-o", f"remount,size={40 * one}", str(small)], check=True)
            again, more = run(small / "run", data)
            assert again == 0, more
            left = steps(small / "run")
            final = f"checkpoints/step_{STEPS:08d}/model/model.safetensors"
            ours, theirs = load((small / "run" / final).read_bytes()), load((roomy / final).read_bytes())
            assert all(bool((value == theirs[name]).all()) for name, value in ours.items())
        finally:
            subprocess.run(["umount", str(small)], check=True)
    rows = [
        {"shown": f"on {4 * one / 1e6:.1f} MB: status {status}, {faults} messages, checkpoints of steps {full}, whole"},
        {"shown": f"the last message: {said.strip().splitlines()[-1].replace(str(work), '')}"},
        {"shown": f"with more room, the same command: status {again}, checkpoints {left}; weights bit for bit"},
    ]
    write_result(Path(sys.argv[1]), "A run whose disk becomes full", rows)


if __name__ == "__main__":
    main()
