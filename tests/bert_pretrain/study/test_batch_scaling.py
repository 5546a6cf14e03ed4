"""What batch_scaling does and finds, on runs whose steps to the target follow a known law instead of a training."""

import csv
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from bert_pretrain.errors import ConfigError
from bert_pretrain.options.config_files import CONFIG_DIR
from bert_pretrain.options.config_loading import load_config
from bert_pretrain.study.batch_scaling import BatchScaling
from bert_pretrain.study.curve import Curve
from bert_pretrain.study.options import StudyConfig
from bert_pretrain.study.page import command_line
from bert_pretrain.study.scaling_page import write_scaling
from tests.bert_pretrain.test_html_page import check_page
from tests.conftest import ROOT

SIZES = [64, 256, 1024, 4096]
LEAST = {"AdamW": 100, "NVLAMB": 200, "SGD": math.inf}
CRITICAL = {"AdamW": 500, "NVLAMB": 800, "SGD": 1}
TARGET = 2.5
LAW = (
    "scales.toy.arms=[NVLAMB,AdamW,SGD]",
    "scales.toy.seeds=[1,2,3]",
    "scales.toy.samples=4000000",
    f"scales.toy.target.batch_sizes={SIZES}",
    "scales.toy.learning_rates={AdamW:[0.04],NVLAMB:[0.0025],SGD:[0.01]}",
)


class Law:
    """In place of ``Runs``: at the best rate, 0.01 sqrt(B / 64), S = S_min (1 + B_crit / B) steps to the target, times
    1 % for each seed above 2; at other rates more. The loss falls linearly from 5, so crossings are exact."""

    def __init__(self, out_dir: Path, *options: str) -> None:
        words = ["study=batch_scaling", "name=batch_scaling", "scale=toy", f"out_dir={out_dir}", *options]
        self.config = load_config("study", words, StudyConfig)
        self.scale, self.out_dir, self.done = self.config.chosen, out_dir, []

    def write_corpus(self) -> None: ...

    def compose(self, arm: str, more: list[str]) -> SimpleNamespace:
        return SimpleNamespace(schedule=SimpleNamespace(warmup=4))

    def curve(self, arm: str, base, seed: int, rate: float, changes: dict, folder: str) -> Curve:
        batch, most = changes["batch.global_batch_size"], changes["schedule.total_steps"]
        off = math.log2(rate / (0.01 * math.sqrt(batch / 64)))
        needed = LEAST[arm] * (1 + CRITICAL[arm] / batch) * (1 + off**2) * (1 + 0.01 * (seed - 2) * (seed > 0))
        self.done.append((arm, batch, seed, rate, most))
        samples, losses, step = [0], [5.0], 0
        while losses[-1] > TARGET and step < most:
            step = min(step + changes["training.evaluate_every_steps"], most)
            samples.append(step * batch)
            losses.append(max(5.0 - (5.0 - TARGET) * step / needed, 1.0))
        return Curve(arm, rate, seed, samples, losses, False, batch, f"run {arm} {batch} {seed}", "c", cpu_seconds=1.0)


@pytest.fixture(scope="module")
def law(tmp_path_factory: pytest.TempPathFactory) -> Law:
    runs = Law(tmp_path_factory.mktemp("law"), *LAW)
    write_scaling(BatchScaling(runs), "here")  # type: ignore[arg-type]
    return runs


def of(law: Law) -> dict:
    return json.loads((law.out_dir / "study.json").read_text())


def test_the_table_has_the_law_s_steps_at_the_best_rates(law: Law) -> None:
    rows = {(row["optimizer"], row["batch"]): row for row in of(law)["rows"]}
    for arm in ("AdamW", "NVLAMB"):
        for batch in SIZES:
            row, exact = rows[arm, batch], LEAST[arm] * (1 + CRITICAL[arm] / batch)
            assert row["peak learning rate"] == pytest.approx(0.01 * math.sqrt(batch / 64))
            assert row["steps to 2.5 nats"] == pytest.approx(exact, rel=6e-3)  # three digits
            assert (row["fewest"], row["most"]) == pytest.approx((0.99 * exact, 1.01 * exact), rel=6e-3)
            assert row["samples to 2.5 nats"] == pytest.approx(exact * batch, rel=6e-3)
            assert (row["seeds"], row["reached"]) == (3, 3)
    assert "best at the edge" not in rows["AdamW", 64]["tried"]


def test_critical_batch_sizes_and_samples_against_the_baseline_s(law: Law) -> None:
    result = of(law)
    for arm in ("AdamW", "NVLAMB"):
        assert result["fits"][arm]["batch"] == pytest.approx(CRITICAL[arm], rel=0.02)
        assert result["fits"][arm]["least_steps"] == pytest.approx(LEAST[arm], rel=0.02)
    row = next(row for row in result["rows"] if (row["optimizer"], row["batch"]) == ("NVLAMB", 1024))
    factor = 200 * (1 + 800 / 1024) / (100 * (1 + 500 / 1024))
    ends = row["95 % low"], row["samples / AdamW"], row["95 % high"]
    assert ends == pytest.approx((factor,) * 3, abs=0.01), "the seeds of both differ alike"
    assert ends[0] <= ends[1] <= ends[2]
    page = (law.out_dir / "study.md").read_text()
    assert "**AdamW**: critical batch size 500 (95 %: 500 to 500), S_min 100 steps." in page
    factors = [200 * (1 + 800 / batch) / (100 * (1 + 500 / batch)) for batch in SIZES]
    mean = f"{math.prod(factors) ** (1 / len(SIZES)):.2f} times the samples of AdamW, mean of 4 batch sizes (95 %: "
    assert re.search(rf"^- \*\*NVLAMB\*\*: critical batch size .*; {re.escape(mean)}", page, re.MULTILINE)
    assert "**NVLAMB** against **AdamW**: worse" in page
    assert "NVIDIA's article: left open." in page


def test_an_optimizer_that_does_not_reach_the_target_is_given_up(law: Law) -> None:
    """After 4 times the steps of AdamW's search; none but the search's seed is run, and the table says so."""
    result = of(law)
    rows = [row for row in result["rows"] if row["optimizer"] == "SGD"]
    for batch in SIZES:
        row = next(row for row in result["rows"] if (row["optimizer"], row["batch"]) == ("SGD", batch))
        assert (row["seeds"], row["steps to 2.5 nats"], row["samples / AdamW"]) == (0, None, None)
        fewest = 100 * (1 + 500 / batch)
        runs = [run for run in law.done if run[:2] == ("SGD", batch)]
        assert {run[2] for run in runs} == {0}
        assert max(run[4] for run in runs) == pytest.approx(4 * fewest, rel=0.05)
    missed = ", ".join(f"all of the search at {batch:,}" for batch in SIZES)
    assert f"**SGD**: failed: {missed}." in result["verdicts"]
    assert f" | {rows[0]['tried']} | 0 | 0 | - |" in (law.out_dir / "study.md").read_text()
    csv_rows = list(csv.DictReader((law.out_dir / "study.csv").open()))
    assert {row["samples to 2.5 nats"] for row in csv_rows if row["optimizer"] == "SGD"} == {""}


def test_an_arm_with_a_largest_batch_of_its_own(tmp_path: Path, law: Law) -> None:
    """It is not run beyond, its claims are judged there, and all else is as in the whole study."""
    largest, option = SIZES[-2], "scales.toy.target.largest_batch"
    runs = Law(tmp_path, *LAW, f"+{option}.SGD={SIZES[0]}", f"+{option}.NVLAMB={largest}")
    write_scaling(BatchScaling(runs), "here")  # type: ignore[arg-type]
    cells = {(arm, batch) for arm, batch, *_ in runs.done}
    assert cells == {
        *(("AdamW", batch) for batch in SIZES),
        *(("NVLAMB", batch) for batch in SIZES[:-1]),
        ("SGD", SIZES[0]),
    }
    assert runs.done == [run for run in law.done if run[:2] in cells]
    verdict = next(text for text in of(runs)["verdicts"] if text.startswith("**NVLAMB** against"))
    assert f"times the samples at a batch of {largest:,} (" in verdict
    with pytest.raises(ConfigError, match=r"target.largest_batch.SGD is 3; allowed: one of target.batch_sizes .64, "):
        Law(tmp_path, *LAW, f"+{option}.SGD=3")
    with pytest.raises(ConfigError, match=r"target.largest_batch is 'SDG'; allowed: NVLAMB, .*did you mean SGD"):
        Law(tmp_path, *LAW, f"+{option}.SDG={largest}")


def test_the_order_of_the_runs_and_their_seeds(law: Law) -> None:
    """The baseline first; a search before its comparison; a search ends with the steps of its best rate so far."""
    arms = [arm for arm, *_ in law.done]
    assert list(dict.fromkeys(arms)) == ["AdamW", "NVLAMB", "SGD"]
    adamw = [(batch, seed) for arm, batch, seed, *_ in law.done if arm == "AdamW"]
    searches = [batch for batch, seed in adamw if seed == 0]
    assert searches == sorted(searches)
    assert adamw[len(searches) :] == [(batch, seed) for seed in (1, 2, 3) for batch in SIZES]
    first = [run for run in law.done if run[:3] == ("AdamW", 64, 0)]
    assert [run[3] for run in first] == pytest.approx([0.04, 0.08, 0.02, 0.01, 0.005])
    caps = [run[4] for run in first]
    assert caps == sorted(caps, reverse=True)
    assert caps[-1] == pytest.approx(100 * (1 + 500 / 64), abs=16), "the best rate's steps, up to the next evaluation"
    second = [run[3] for run in law.done if run[:3] == ("AdamW", 256, 0)]
    assert second[0] == pytest.approx(0.02), "the best rate of the batch size before, times the root of the ratio"


def test_the_command_is_the_one_that_was_given(law: Law, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["batch_scaling", "scale=toy", "scales.toy.seeds=[1,2,3]"]
    monkeypatch.setattr("sys.argv", ["bert-pretrain", "study", *words, "out_dir=there"])
    assert command_line(law.config) == "bert-pretrain study batch_scaling scale=toy 'scales.toy.seeds=[1,2,3]'"
    monkeypatch.setattr("sys.argv", ["notebook"])
    assert command_line(law.config) == "bert-pretrain study batch_scaling scale=toy"


def test_every_file_is_written(law: Law) -> None:
    lines = (law.out_dir / "study.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 * len(SIZES)
    assert "run NVLAMB 64 1" in (law.out_dir / "study.md").read_text()
    page = (law.out_dir / "study.html").read_text()
    found = check_page(page)
    assert found.tags.count("svg") == 1
    assert page.count('<th scope="row">') == len(lines) - 1
    assert all(f"<td>{row['tried']}</td>" in page for row in of(law)["rows"])
    assert "AdamW: critical batch size 500" in page
    assert "run NVLAMB 64 1" in page
    assert all((law.out_dir / f"study.{kind}").stat().st_size > 10_000 for kind in ("png", "svg"))
    assert of(law)["cpu_hours"] == pytest.approx(len(law.done) / 3600, abs=0.01)


def test_the_page_states_the_values_of_every_published_optimizer() -> None:
    """A row of docs/studies.md: betas or momentum, eps, decay, and what is done to the gradient of the model."""
    gradients = {"unit": "divided by its norm", "clip": "clipped at norm 1"}
    page = (ROOT / "docs/studies.md").read_text()
    for name in ("NVLAMB", "LAMB", "AdamW", "Muon", "AdamH", "LARS", "SGD"):
        values = yaml.safe_load((CONFIG_DIR / f"optimizer/{name.lower()}.yaml").read_text())
        kind = values.get("pre_normalization") or ("clip" if values.get("max_grad_norm") == 1 else "none")
        betas = ", ".join(f"{beta:g}" for beta in values.get("betas", [values.get("momentum")]))
        cells = [name, betas, values.get("eps", "-"), values["weight_decay"], gradients.get(kind, "as it is")]
        assert f"| {' | '.join(map(str, cells))} |" in page
