"""Standard output that cannot be written: a long command goes on, a printing one says so."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bert_pretrain.output import SteadyOutput
from bert_pretrain.training.metrics import read_rows
from tests.conftest import ROOT, TEST_RECIPE

FULL = Path("/dev/full")


class Disk(io.StringIO):
    """A stream whose writes fail while ``error`` is set."""

    error = 0

    def write(self, text: str) -> int:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        return super().write(text)


def test_lines_on_a_full_disk_are_counted_and_told_later() -> None:
    disk = Disk()
    output = SteadyOutput(disk)
    output.write("one\n")
    disk.error = errno.ENOSPC
    output.write("two\n")
    output.write("three\n")
    disk.error = 0
    output.write("four\n")
    output.write("five\n")
    missing = "(up to 2 lines before this one were not printed: No space left on device)\n"
    assert disk.getvalue() == f"one\nfour\n{missing}five\n"


def test_a_reader_that_left_ends_a_command_unless_its_results_are_in_files() -> None:
    disk = Disk()
    disk.error = errno.EPIPE
    output = SteadyOutput(disk)
    with pytest.raises(BrokenPipeError):
        output.write("one\n")
    output.goes_on = True
    output.write("two\n")
    assert output.failed_lines == 1


def run(words: list[str], redirect: str) -> subprocess.CompletedProcess[str]:
    command = f'exec "$@" {redirect}'
    return subprocess.run(
        ["sh", "-c", command, "sh", sys.executable, "-m", "bert_pretrain.cli", *words],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
@pytest.mark.parametrize("redirect", [">/dev/full", ">&-"])
def test_a_run_goes_on_without_standard_output(tmp_path: Path, shard_dir: Path, redirect: str) -> None:
    run_dir = tmp_path / "run"
    process = run(["pretrain", *TEST_RECIPE, f"data.dir={shard_dir}", f"run_dir={run_dir}"], redirect)
    assert (process.returncode, process.stderr) == (0, "")
    assert list((run_dir / "checkpoints").glob("step_*"))
    assert any("loss" in row for row in read_rows(run_dir / "metrics.jsonl"))


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_a_printing_command_says_that_its_output_is_lost() -> None:
    process = run(["plan", "recipe=demo"], ">/dev/full")
    assert process.returncode == 2
    assert process.stderr == "error: standard output cannot be written (No space left on device)\n"


def test_files_do_not_get_the_numbers_of_closed_streams() -> None:
    code = (
        "import sys\nfrom bert_pretrain.output import steady_output\nwith steady_output():\n"
        "    sys.stderr.isatty()\n    print('to nobody')\n    sys.exit(open(sys.argv[0]).fileno())"
    )
    words = ["sh", "-c", 'exec "$@" 0<&- >&- 2>&-', "sh", sys.executable, "-c", code]
    words[-1] = code.replace("sys.argv[0]", "'/dev/zero'")
    assert subprocess.run(words, cwd=ROOT, check=False).returncode > 2
