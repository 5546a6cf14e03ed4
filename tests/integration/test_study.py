"""Studies: runs, interruption, a run that diverges, mistakes; and every study in configs/study."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import bert_pretrain.study.single_run as single_run
from bert_pretrain.config import PretrainConfig, resolved_yaml
from bert_pretrain.distributed.preemption import StopRequest
from bert_pretrain.distributed.world import World
from bert_pretrain.errors import ConfigError
from bert_pretrain.optim import Adam, NVLamb
from bert_pretrain.options.config_files import CONFIG_DIR
from bert_pretrain.options.config_loading import load_config
from bert_pretrain.report import page, plots
from bert_pretrain.study.__main__ import main, with_run_options
from bert_pretrain.study.batch_scaling import BatchScaling
from bert_pretrain.study.options import SpikeConfig, StudyConfig
from bert_pretrain.study.run import Study, write_study
from bert_pretrain.study.runs import Runs, changed
from tests.conftest import StopAfter, metric_rows, run_module
from tests.forked import draw_no_report

NAMES = sorted(path.stem for path in (CONFIG_DIR / "study").glob("*.yaml"))
SMALL = (
    "scales.toy.seeds=[1]",
    'scales.toy.arms=["degree 0.5","degree 1"]',
    "scales.toy.samples=512",
    "scales.toy.corpus.heldout_samples=32",
    "device=cpu",
)
RUN = ("batch.global_batch_size=64", "batch.micro_batch_size=32", "data.block_size=64")


@contextmanager
def small_study(out_dir: Path, *options: str, name: str = "decay_degree", scale: str = "toy"):
    """The study as the command builds it; the options of its runs are composed inside the context."""
    given = [f"study={name}", f"name={name}", f"scale={scale}", f"out_dir={out_dir}"]
    given += with_run_options(list(options))
    config = load_config("study", given, StudyConfig)
    yield Study(Runs(config, World(0, 0, 1, torch.device("cpu")), StopRequest()))


@pytest.fixture(autouse=True)
def no_report_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((page, "drawn"), (plots, "save")):
        monkeypatch.setattr(module, name, getattr(module, name))  # to have it back
    draw_no_report()


def test_the_folder_of_a_study_may_have_any_name(tmp_path: Path) -> None:
    """And the options of its runs have no quotes of their own: the shell's are enough."""
    out_dir = tmp_path / "a, b=c (d) it's"
    with small_study(out_dir) as study:
        assert study.runs.compose("degree 1").data.dir == f"{out_dir}/corpus"
        assert f"data.dir={out_dir}/corpus" in study.runs.words("degree 1")


def files(folder: Path, name: str) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.rglob(name))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A study by its command, and what it printed. 512 samples in global batches of 64: 8 steps, each evaluated."""
    folder = tmp_path_factory.mktemp("study")
    done = run_module("bert_pretrain.study", "decay_degree", "scale=toy", f"out_dir={folder}", *SMALL, *RUN)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_two_runs_and_their_page(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    result = json.loads((folder / "study.json").read_text())
    assert [row["arm"] for row in result["rows"]] == ["degree 0.5", "degree 1"]
    for curve, degree in zip(result["curves"], ("0_5", "1"), strict=True):
        run_dir = folder / f"runs/degree_{degree}/lr_0.06/seed_1"
        rows = metric_rows(run_dir)
        assert curve["losses"] == [row["eval_mlm_loss"] for row in rows if "eval_mlm_loss" in row and row["step"]]
        assert curve["samples"] == list(range(64, 513, 64))
        assert not (run_dir / "checkpoints").exists()
        assert "step       8/8" in (run_dir / "log.txt").read_text()
    assert result["curves"][0]["losses"] != result["curves"][1]["losses"]
    text = (folder / "study.md").read_text()
    assert text in printed
    assert result["verdicts"][0] in text
    assert (folder / "study.png").stat().st_size > 10_000


def test_a_study_that_was_stopped_and_resumed_gives_the_same_curves(tmp_path: Path, finished: tuple[Path, str]) -> None:
    whole = json.loads((finished[0] / "study.json").read_text())["curves"]
    with small_study(tmp_path / "cut", *SMALL, *RUN) as study:
        study.runs.stop = StopAfter(7)
        with pytest.raises(SystemExit, match="75"):
            study.run()
    *_, saved = files(tmp_path / "cut", "progress.json")
    assert 0 < json.loads((tmp_path / "cut" / saved).read_text())["step"] < 8
    assert not files(tmp_path / "cut", "result.json")
    with small_study(tmp_path / "cut", *SMALL, *RUN) as study:
        again = study.run()
    for curve in whole:
        (found,) = again[curve["arm"]]
        assert (found.samples, found.losses) == (curve["samples"], curve["losses"])
    done = files(tmp_path / "cut", "metrics.jsonl")
    with small_study(tmp_path / "cut", *SMALL, *RUN) as study:
        assert study.run() == again
    assert files(tmp_path / "cut", "metrics.jsonl") == done, "a finished run is not repeated"
    with (
        small_study(tmp_path / "cut", *SMALL, *RUN, "batch.global_batch_size=32") as study,
        pytest.raises(ConfigError, match=r"belongs to another run: batch.global_batch_size was 64 and is 32"),
    ):
        study.run()


def test_a_longer_study_does_not_take_the_result_of_the_shorter(tmp_path: Path) -> None:
    """A run may be extended under a constant rate, but a finished run of a study has no checkpoint to go on from."""
    with small_study(tmp_path, *SMALL, *RUN, "schedule.degree=0", "schedule.warmup_steps=2") as study:
        run_dir = tmp_path / "runs/degree_1/lr_0.06/seed_1"
        run_dir.mkdir(parents=True)
        study.bases = {"degree 1": study.runs.compose("degree 1")}
        config = changed(study.bases["degree 1"], {**study._changes("degree 1"), "seed": 1, "run_dir": str(run_dir)})
        (run_dir / "config.yaml").write_text(resolved_yaml(config))
        (run_dir / "result.json").write_text('{"samples": [64], "losses": [2.0], "diverged": false}')
        assert study._curve("degree 1", 1, 0.06).final == 2.0
        study.scale.samples *= 2
        with pytest.raises(ConfigError, match=r"belongs to another run: .*schedule.total_steps was 8 and is 16"):
            study._curve("degree 1", 1, 0.06)


def test_a_study_that_goes_on_elsewhere_keeps_the_type_of_its_products(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``precision.compute=auto`` it is the first machine's; runs of two types are not compared with each other."""
    with small_study(tmp_path, *SMALL, *RUN, "precision.compute=auto") as study:
        run_dir = tmp_path / "runs/degree_1/lr_0.06/seed_1"
        run_dir.mkdir(parents=True)
        study.bases = {"degree 1": study.runs.compose("degree 1")}
        changes = {**study._changes("degree 1"), "seed": 1, "run_dir": str(run_dir), "precision.compute": "bf16"}
        (run_dir / "config.yaml").write_text(resolved_yaml(changed(study.bases["degree 1"], changes)))
        (run_dir / "result.json").write_text('{"samples": [64], "losses": [2.0], "diverged": false}')
        monkeypatch.setattr("bert_pretrain.model.precision.has_bf16", lambda _: True)
        assert study._curve("degree 1", 1, 0.06).final == 2.0
        monkeypatch.setattr("bert_pretrain.model.precision.has_bf16", lambda _: False)
        told = r"precision.compute was 'bf16' and is 'fp32'; give the study the options that it had, or another out_dir"
        with pytest.raises(ConfigError, match=told):
            study._curve("degree 1", 1, 0.06)


def test_learning_rates_are_searched_on_their_own_seed_and_divergence_is_a_result(tmp_path: Path) -> None:
    """SGD learns nothing in 8 steps at 1e-3, so 1 is the edge of its grid, which goes on to 1,000."""
    rates = ("scales.toy.arms=[NVLAMB,SGD]", "scales.toy.learning_rates={NVLAMB:[0.06],SGD:[1e-3,1.0]}")
    small = (SMALL[0], *SMALL[2:], *RUN)
    with small_study(tmp_path / "rates", *small, *rates, name="optimizers") as study:
        curves = study.run()
    assert list(files(tmp_path / "rates", "result.json")) == [
        "runs/NVLAMB/lr_0.06/seed_1/result.json",
        "runs/SGD/lr_0.001/seed_0/result.json",
        "runs/SGD/lr_1/seed_0/result.json",
        "runs/SGD/lr_1/seed_1/result.json",
        "runs/SGD/lr_1000/seed_0/result.json",
    ]
    assert curves["SGD"][0].rate == 1.0
    sgd = ("optimizer=sgd", "optimizer.lr=1e6", 'scales.toy.arms=["degree 1"]')
    with small_study(tmp_path / "sgd", *SMALL, *RUN, *sgd) as study:
        write_study(study, "here")
    result = json.loads(
        (tmp_path / "sgd" / "study.json").read_text(), parse_constant=pytest.fail
    )  # JSON has no Infinity
    assert result["curves"][0]["diverged"]
    assert result["rows"][0]["diverged"] == 1


@pytest.mark.parametrize("make", [NVLamb, Adam])
def test_a_spike_scales_one_gradient_of_the_run(make) -> None:
    layer = torch.nn.Parameter(torch.ones(3))
    optimizer = make([layer], lr=0.1)
    seen = []
    for number in range(4):
        layer.grad = torch.full((3,), 2.0)
        if number < 3:
            with single_run.spiked(SpikeConfig(2, 1000.0)):
                optimizer.step()
        else:
            optimizer.step()
        seen.append(float(optimizer.grad_norm) / 12**0.5)
    assert seen == pytest.approx([1.0, 1.0, 1000.0, 1.0])


def run_configs(study: Study) -> list[PretrainConfig]:
    """One run of every arm; of the smallest and the largest batch size, if the study has a target."""
    arms = study.runs.config.chosen_arms
    if study.scale.target is not None:
        scaling = BatchScaling(study.runs)
        sizes = scaling.target.batch_sizes
        return [scaling.base(arm, batch) for arm in arms for batch in (sizes[0], sizes[-1])]
    study.bases = {arm: study.runs.compose(arm) for arm in arms}
    return [changed(study.bases[arm], study._changes(arm)) for arm in arms]


@pytest.mark.parametrize("scale", ["toy", "small", "base"])
@pytest.mark.parametrize("name", NAMES)
def test_every_study_is_valid_at_every_scale(name: str, scale: str, tmp_path: Path) -> None:
    with small_study(tmp_path, name=name, scale=scale) as study:
        config = study.runs.config
        assert len(config.chosen.seeds) >= 5
        assert config.chosen_claims
        assert len(config.chosen.note) > 20
        runs = run_configs(study)
    for run in runs if config.chosen.target is None else []:
        assert run.schedule.total_steps * run.batch.global_batch_size == config.chosen.samples, "no remainder"
    if config.chosen.target is not None:
        assert {run.schedule.shape for run in runs} == {"constant"}, "no run's past depends on its end"
        least, most = config.chosen.target.batch_sizes[0], config.chosen.target.batch_sizes[-1]
        assert (least, most) == {"toy": (64, 1024), "small": (64, 8192), "base": (256, 65_536)}[scale]
        for run in runs:  # an optimizer that keeps the norm of its matrices begins with those of a usual initialisation
            if run.optimizer.algorithm in ("adamh", "muonh"):
                assert run.model.initializer_range == pytest.approx(run.model.hidden_size**-0.5, rel=0.02)


def test_the_article_is_what_the_base_scale_runs(tmp_path: Path) -> None:
    with small_study(tmp_path, name="batch_size", scale="base") as study:
        runs, rates = run_configs(study), study.scale.learning_rates.values()
    assert [run.batch.global_batch_size for run in runs] == [256, 1024, 4096, 16_384, 65_536]
    for run, (rate,) in zip(runs, rates, strict=True):
        assert rate == pytest.approx(6e-3 * (run.batch.global_batch_size / 65_536) ** 0.5)
        assert (run.schedule.warmup_proportion, run.schedule.degree) == (0.2843, 0.5)
        assert (run.optimizer.pre_normalization, run.optimizer.trust_ratio) == ("unit", "all")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("scale=huge",), r"scale is 'huge'; allowed: toy, small, base"),
        (("scales.toy.seeds=[1,1]",), r"seeds is \[1, 1\]; allowed: one or more, each once"),
        (("scales.toy.seeds=[0,1]",), "without the tuning seed"),
        (('scales.toy.arms=["degree 3"]',), r"scales.toy is 'degree 3'; allowed: degree 0.5, degree 1"),
        (("claims=[{arm:degree 3,against:degree 1,source:expected_worse,expects:worse}]",), "claims is 'degree 3'"),
        (("+scales.toy.arm_options={degree 3:[a]}",), r"scales.toy is 'degree 3'; allowed: degree 0.5"),
        (("scales.toy.samples=100",), "scales.toy.samples is 100; allowed: two batches or more"),
        (("+scales.toy.spikes={degree 0.5:{step:0,factor:10}}",), "spike.step is 0; allowed: 1 or more"),
        (("optimzer.lr=1",), "there is no option .optimzer.lr.; did you mean optimizer.lr"),
        (("optimizer.lr=-1",), "optimizer.lr is -1.0; allowed: above 0, up to 1e\\+06"),
        (("+scales.toy.speed=1",), "speed"),
    ],
)
def test_a_mistake_is_one_message_before_anything_runs(options: tuple, message: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=message), small_study(tmp_path / "out", *options) as study:
        study.run()
    assert not (tmp_path / "out").exists()


def test_a_mistyped_name(capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["prenormalization", "scale=toy"])
    assert "there is no study 'prenormalization'; did you mean pre_normalization?" in capsys.readouterr().err
