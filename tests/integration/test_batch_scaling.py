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
from bert_pretrain.options.config_loading import load_config
from bert_pretrain.options.stored_options import parse_options
from bert_pretrain.study.__main__ import with_run_options
from bert_pretrain.study.options import StudyConfig
from tests.forked import Forked

OPTIONS = (
    "batch_scaling",
    "scale=toy",
    "device=cpu",
    "scales.toy.arms=[AdamW]",
    "scales.toy.seeds=[1,2]",
    "scales.toy.samples=4096",
    "scales.toy.learning_rates={AdamW:[0.02]}",
    "scales.toy.target.loss=3.85",
    "scales.toy.target.batch_sizes=[32,64]",
    "scales.toy.target.evaluate_every_samples=128",
    "scales.toy.corpus.samples=4096",
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
    assert [(row["optimizer"], row["batch"], row["seeds"]) for row in result["rows"]] == [
        ("AdamW", 32, 2),
        ("AdamW", 64, 2),
    ]
    steps = []
    for curve in result["curves"]:
        losses, samples = curve["losses"], curve["samples"]
        at = next(i for i, loss in enumerate(losses) if loss <= 3.85)
        assert at == len(losses) - 1, "what the run did beyond the target is not kept"
        if curve["batch"] == 32:  # linear in the loss between two evaluations
            share = (losses[at - 1] - 3.85) / (losses[at - 1] - losses[at])
            steps.append((samples[at - 1] + share * (samples[at] - samples[at - 1])) / 32)
    row = result["rows"][0]
    assert row["steps to 3.85 nats"] == pytest.approx(math.sqrt(steps[0] * steps[1]), rel=5e-3)
    assert {curve["seed"] for curve in result["curves"]} == {1, 2}, "the search has a seed of its own"


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
        (("scales.toy.target.baseline=Adam",), "target.baseline is 'Adam'; allowed: NVLAMB, LAMB, AdamW"),
        (("scales.toy.learning_rates={AdamW:[]}",), "learning_rates.AdamW is ..; allowed: one or more to begin with"),
        (("scales.toy.target.give_up_factor=1",), "give_up_factor is 1.0; allowed: above 1"),
        (("scales.toy.target.loss=0",), "target.loss is 0.0; allowed: a number above 0"),
    ],
)
def test_a_mistake_is_one_message_before_anything_runs(options: tuple, message: str) -> None:
    words = ["study=batch_scaling", "name=batch_scaling", "scale=toy", "out_dir=none", *with_run_options(list(options))]
    with pytest.raises(Exception, match=message):
        load_config("study", words, StudyConfig)
