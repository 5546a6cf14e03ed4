"""batch_scaling on a small language: the runs that it does, its table, and the same table after it was killed."""

import json
import math
import random
import shlex
import signal
import time
from pathlib import Path

import pytest

from bert_pretrain.config import PretrainConfig
from bert_pretrain.config_loading import load_config
from bert_pretrain.stored_options import parse_options
from bert_pretrain.study.__main__ import with_run_options
from bert_pretrain.study.options import StudyConfig
from tests.forked import Forked

OPTIONS = (
    "batch_scaling",
    "scale=toy",
    "device=cpu",
    "scales.toy.arms=[SGD,AdamW]",
    "scales.toy.seeds=[1,2]",
    "scales.toy.samples=8192",
    "scales.toy.learning_rates={AdamW:[0.02],SGD:[0.001]}",
    "scales.toy.target.loss=3.5",
    "scales.toy.target.batch_sizes=[16,32,64]",
    "scales.toy.target.evaluate_every_samples=128",
    "scales.toy.target.give_up_factor=1.5",
    "scales.toy.corpus.heldout_samples=64",
    "data.block_size=64",
)


def study(out_dir: Path) -> Forked:
    return Forked("bert_pretrain.study", *OPTIONS, f"out_dir={out_dir}")


def without_history(out_dir: Path) -> list[dict]:
    """The rows of the table; the folder that the commands name differs between two studies."""
    text = (out_dir / "study.json").read_text().replace(str(out_dir), "OUT")
    return json.loads(text)["rows"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A study that nothing disturbed, and how many seconds it took."""
    out_dir, started = tmp_path_factory.mktemp("study") / "whole", time.monotonic()
    done = study(out_dir).wait()
    assert done.returncode == 0, done.stderr
    return out_dir, time.monotonic() - started


def test_each_run_ends_at_the_target_and_the_table_has_its_steps(whole: tuple[Path, float]) -> None:
    result = json.loads((whole[0] / "study.json").read_text())
    for curve in result["curves"]:
        before, last = curve["losses"][-2:]
        if curve["arm"] == "AdamW":
            assert last <= 3.5 < before, "the first evaluation at the target is the last"
    rows = {(row["optimizer"], row["batch"]): row for row in result["rows"]}
    assert list(rows) == [(arm, batch) for arm in ("SGD", "AdamW") for batch in (16, 32, 64)]
    row = rows["AdamW", 32]
    runs = [curve for curve in result["curves"] if (curve["arm"], curve["batch"]) == ("AdamW", 32)]
    steps = []
    for curve in runs:  # between the last two evaluations, linear in the loss
        (first, second), (before, last) = curve["samples"][-2:], curve["losses"][-2:]
        steps.append((first + (before - 3.5) / (before - last) * (second - first)) / 32)
    assert (row["n"], row["reached"]) == (2, 2)
    assert row["steps"] == pytest.approx(math.sqrt(steps[0] * steps[1]), rel=5e-3)
    assert [row["lowest"], row["highest"]] == pytest.approx(sorted(steps), rel=5e-3)
    searched = (rate for rate in result["searched"] if (rate["arm"], rate["batch"]) == ("AdamW", 32))
    tried = {rate["rate"]: rate["steps"] for rate in searched}
    best = row["peak learning rate"]
    assert tried[best] == min(steps for steps in tried.values() if steps)
    assert min(tried) < best < max(tried)
    assert {curve["seed"] for curve in result["curves"]} == {1, 2}, "the search has a seed of its own"


def test_an_optimizer_that_does_not_reach_the_target_is_given_up(whole: tuple[Path, float]) -> None:
    """SGD at these rates: after 1.5 times AdamW's steps; no seed but the search's is run, and the table says so."""
    result = json.loads((whole[0] / "study.json").read_text())
    adamw = {}
    for rate in result["searched"]:
        if rate["arm"] == "AdamW" and rate["steps"]:
            adamw[rate["batch"]] = min(rate["steps"], adamw.get(rate["batch"], math.inf))
    for batch in (16, 32, 64):
        row = next(row for row in result["rows"] if (row["optimizer"], row["batch"]) == ("SGD", batch))
        if row["n"] == 0:
            assert row["steps"] == "-"
        for config in (whole[0] / f"runs/SGD/batch_{batch}").rglob("config.yaml"):
            steps = parse_options(config.read_text(), config)["schedule"]["total_steps"]
            assert steps <= max(4, int(1.5 * adamw[batch]))
    assert any("SGD** does not reach the target" in text for text in result["verdicts"])


def test_the_files_and_the_command_of_a_row(whole: tuple[Path, float]) -> None:
    out_dir = whole[0]
    page, rows = (out_dir / "study.md").read_text(), json.loads((out_dir / "study.json").read_text())["rows"]
    for row in rows:
        assert row["command"] in page
    for name in ("study.csv", "study.png", "study.svg"):
        assert (out_dir / name).stat().st_size > 300
    words = shlex.split(rows[-1]["command"])
    assert words[:2] == ["bert-pretrain", "pretrain"]
    config = load_config("pretrain", words[2:], PretrainConfig)
    stored = Path(config.run_dir) / "config.yaml"
    options = parse_options(stored.read_text(), stored)
    assert options["optimizer"]["lr"] == config.optimizer.lr == rows[-1]["peak learning rate"]
    assert options["schedule"]["total_steps"] == config.schedule.total_steps
    assert (options["seed"], config.batch.global_batch_size) == (1, rows[-1]["batch"])


def test_killed_at_five_random_moments_it_ends_with_the_same_table(whole: tuple[Path, float], tmp_path: Path) -> None:
    rng, kills = random.Random(18), 0
    while kills < 5:
        running = study(tmp_path)
        until = time.monotonic() + rng.uniform(0.1, 0.5) * whole[1]
        while running.is_running() and time.monotonic() < until:
            time.sleep(0.005)
        if not running.is_running():
            assert running.wait().returncode == 0, running.stderr
            break
        running.signal(0, signal.SIGKILL)
        assert running.wait().returncode == -signal.SIGKILL
        kills += 1
    done = study(tmp_path).wait()
    assert done.returncode == 0, done.stderr
    assert kills >= 1
    assert without_history(tmp_path) == without_history(whole[0])
    before, after = (json.loads((place / "study.json").read_text()) for place in (whole[0], tmp_path))
    for name in ("searched", "fits", "verdicts"):
        assert after[name] == before[name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("scales.toy.target.batch_sizes=[64,16]",), "target.batch_sizes is .64, 16.; allowed: one or more, ascending"),
        (("scales.toy.target.baseline=Adam",), "target.baseline is 'Adam'; allowed: one of NVLAMB, LAMB, AdamW"),
        (("scales.toy.learning_rates.AdamW=[]",), "learning_rates.AdamW is ..; allowed: one or more to begin with"),
        (("scales.toy.target.give_up_factor=1",), "give_up_factor is 1.0; allowed: above 1"),
        (("scales.toy.target.loss=0",), "target.loss is 0.0; allowed: a number above 0"),
    ],
)
def test_a_mistake_is_one_message_before_anything_runs(options: tuple, message: str) -> None:
    words = ["study=batch_scaling", "name=batch_scaling", "scale=toy", "out_dir=none", *with_run_options(list(options))]
    with pytest.raises(Exception, match=message):
        load_config("study", words, StudyConfig)
