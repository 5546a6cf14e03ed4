"""Shards, losses, a checkpoint of commit 56623bf and NVLAMB give the numbers that commit gave."""

import copy
import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import HANGS, ROOT

REFERENCE = json.loads((ROOT / "scripts/results/numbers_56623bf.json").read_text())["numbers"]


def test_numbers_are_unmoved() -> None:
    """Fixed corpus, small run, resumed run, NVLAMB; bit for bit on a machine of the reference's kind."""
    command = [sys.executable, "scripts/prove_numbers.py", "check", "--small"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANGS, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the numbers are those of the reference" in done.stdout


@pytest.fixture(scope="module")
def comparison() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare_numbers", ROOT / "scripts/compare_numbers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured() -> dict[str, Any]:
    """What an unmoved program gives."""
    found = copy.deepcopy(REFERENCE)
    return {**found, "resumed": copy.deepcopy(found["small"])}


def test_what_is_equal_has_no_differences(comparison: ModuleType) -> None:
    assert comparison.all_differences(measured(), REFERENCE, True) == []
    assert comparison.all_differences(measured(), REFERENCE, False) == []


def last_bit(run: dict) -> None:
    run["training"]["loss"][6] = math.nextafter(run["training"]["loss"][6], 0)


def slightly_worse(run: dict) -> None:
    run["training"]["loss"][6] *= 1.0001


def not_a_number(run: dict) -> None:
    run["training"]["loss"][6] = math.nan


def row_lost(run: dict) -> None:
    run["evaluations"] = {key: values[:-1] for key, values in run["evaluations"].items()}


def other_weights(run: dict) -> None:
    run["weights_sha256"] = "0"


@pytest.mark.parametrize(
    ("change", "in_tolerance"),
    [(last_bit, True), (slightly_worse, False), (not_a_number, False), (row_lost, False), (other_weights, True)],
)
@pytest.mark.parametrize("part", ["small", "resumed"])
def test_a_moved_number_is_named(
    comparison: ModuleType, part: str, change: Callable[[dict], None], in_tolerance: bool
) -> None:
    found = measured()
    change(found[part])
    (difference,) = comparison.all_differences(found, REFERENCE, True)
    assert difference.startswith(part)
    assert bool(comparison.all_differences(found, REFERENCE, False)) is not in_tolerance


def test_other_shards_and_a_wrong_kernel_are_named_on_any_machine(comparison: ModuleType) -> None:
    found = measured()
    found["shards"]["train_00001.hdf5"]["segment_ids"] = "0"
    found["nvlamb"]["fused"]["largest_error"] = 1e-4
    shards, nvlamb = comparison.all_differences(found, REFERENCE, False)
    assert "train_00001.hdf5 differs in segment_ids" in shards
    assert "fused" in nvlamb
