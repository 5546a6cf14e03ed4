"""A run on a full disk reports the error, loses nothing, and continues with the same command once there is space.

    sudo .venv/bin/python scripts/prove_full_disk.py RESULT.json

``run_dir`` is on a tmpfs that this script mounts, too small for all checkpoints of the run. Needs root; takes a minute.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import repository_root  # noqa: F401  makes bert_pretrain importable
from results_file import argument_parser, write_result
from safetensors.torch import load  # load_file would keep the file open, so that the disk could not be unmounted

from bert_pretrain.checkpoint.files import find_fault
from bert_pretrain.checkpoint.store import CheckpointStore
from tests.conftest import TEST_RECIPE, make_shards

STEPS = 40


def run(run_dir: Path, data: Path) -> tuple[int, str]:
    """Run the command, the same each time; its exit status and output."""
    options = [
        *TEST_RECIPE, f"data.dir={data}", f"run_dir={run_dir}", f"schedule.total_steps={STEPS}",
        "checkpoint.every_steps=4", "checkpoint.keep_last=100", "training.evaluate_every_steps=1000",
    ]  # fmt: skip
    command = [sys.executable, "-m", "bert_pretrain.pretrain", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def steps(run_dir: Path) -> list[int]:
    """The steps of the checkpoints, all of which must be valid."""
    found = CheckpointStore(run_dir / "checkpoints", 1, None).all()
    assert all(find_fault(path) is None for path in found)
    return [int(path.name[5:]) for path in found]


def main() -> None:
    """Fill the disk, check, enlarge it, continue, compare the weights."""
    parser = argument_parser(__doc__)
    parser.add_argument("result", type=Path, help="JSON file to write")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="prove_full_disk.") as folder:
        work, data = Path(folder), make_shards(Path(folder) / "data")
        reference, small = work / "reference", work / "small"
        assert run(reference, data)[0] == 0
        files = [path for path in (reference / "checkpoints/step_00000004").rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={4 * size}", "tmpfs", str(small)], check=True)
        try:
            status, output = run(small / "run", data)
            full = steps(small / "run")
            faults = output.count("could not be written")
            assert status == 2, output
            assert "Traceback" not in output, output
            assert " MB are free there" in output or "No space left" in output, output
            assert full, output
            subprocess.run(["mount", "-o", f"remount,size={40 * size}", str(small)], check=True)
            second_status, second_output = run(small / "run", data)
            assert second_status == 0, second_output
            finished = steps(small / "run")
            final = f"checkpoints/step_{STEPS:08d}/model/model.safetensors"
            ours, expected = load((small / "run" / final).read_bytes()), load((reference / final).read_bytes())
            assert all(bool((value == expected[name]).all()) for name, value in ours.items())
        finally:
            subprocess.run(["umount", str(small)], check=True)
    rows = [
        {"shown": f"{4 * size / 1e6:.1f} MB: status {status}, {faults} messages, valid checkpoints of steps {full}"},
        {"shown": f"the last message: {output.strip().splitlines()[-1].replace(str(work), '')}"},
        {"shown": f"with more space: status {second_status}, checkpoints {finished}; weights equal bit for bit"},
    ]
    write_result(given.result, "A run whose disk becomes full", rows)


if __name__ == "__main__":
    main()
