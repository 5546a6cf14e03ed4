"""GLUE's archive: all files of the best seeds, each as long as its test set; what is missing is named."""

import json
import zipfile
from pathlib import Path

import pytest

from bert_pretrain.finetune import submission
from bert_pretrain.finetune.submission import FILES
from tests.bert_pretrain.finetune.test_tasks import TASKS, composed

SMALL = {name: (task, 3) for name, (task, _) in FILES.items()}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results of two seeds for every task of GLUE; the second is better. SQuAD's beside them."""
    monkeypatch.setattr(submission, "FILES", SMALL)
    folder = tmp_path / "finetune"
    for task in TASKS:
        config = composed(task).task
        for seed in (1, 2):
            for split, files in config.splits.items():
                path = folder / task / f"seed_{seed}" / split / files.predictions
                path.parent.mkdir(parents=True)
                path.write_text("index\tprediction\n" + "".join(f"{row}\t{seed}\n" for row in range(3)))
        rows = [{"seed": seed, config.metrics[0]: 50.0 + seed, "other": -seed} for seed in (1, 2)]
        result = {"task": task, "runs": rows, "options": {"task": {"metrics": config.metrics}}}
        (folder / task / "results.json").write_text(json.dumps(result))
    return folder


def run(*words: str) -> None:
    submission.main(list(words))


def test_the_archive_has_every_file_of_the_best_seed(results: Path, tmp_path: Path) -> None:
    run(f"results=[{results}]", f"out_file={tmp_path / 'glue.zip'}")
    with zipfile.ZipFile(tmp_path / "glue.zip") as archive:
        assert set(archive.namelist()) == set(FILES)
        for name in FILES:
            assert archive.read(name) == b"index\tprediction\n0\t2\n1\t2\n2\t2\n"


def test_every_required_file_is_predicted_by_its_task() -> None:
    for name, (task, _) in FILES.items():
        splits = composed(task).task.splits
        assert name in {split.predictions for key, split in splits.items() if key.startswith("test")}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "no_rte",
            "hold no test predictions of rte (RTE.tsv); make them with bert-pretrain finetune task=NAME",
        ),
        ("no_ax", "hold no test predictions of mnli (AX.tsv)"),
        ("short", "WNLI.tsv has 2 predictions in order; GLUE's test set has 3"),
        ("twice", "results has two folders of sst2"),
        ("exists", "exists; give another, or overwrite=true"),
        ("damaged", "is no result of bert-pretrain finetune"),
        ("nowhere", "no results.json"),
    ],
)
def test_what_is_missing_is_named(
    results: Path, tmp_path: Path, fault: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    out_file = tmp_path / "glue.zip"
    if fault == "no_rte":
        (results / "rte").rename(tmp_path / "away")
    if fault == "no_ax":
        (results / "mnli/seed_2/test_diagnostic/AX.tsv").unlink()
    if fault == "short":
        (results / "wnli/seed_2/test/WNLI.tsv").write_text("index\tprediction\n0\t1\n1\t1\n")
    if fault == "twice":
        (results / "copy").mkdir()
        (results / "copy/results.json").write_text((results / "sst2/results.json").read_text())
    if fault == "exists":
        out_file.symlink_to("nowhere")
    if fault == "damaged":
        (results / "cola/results.json").write_text('{"task": "cola"}')
    where = results / "nowhere" if fault == "nowhere" else results
    with pytest.raises(SystemExit) as exited:
        run(f"results=[{where}]", f"out_file={out_file}")
    assert exited.value.code == 2
    assert message in capsys.readouterr().err
    assert not out_file.exists()
