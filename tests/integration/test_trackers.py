"""A run of two processes that is killed and resumed: TensorBoard has each row once; a tracker that fails is told of."""

import signal
from pathlib import Path

import numpy as np
import pytest

from bert_pretrain.trackers.tracker import values_of
from bert_pretrain.training.metrics import read_rows
from tests.conftest import TEST_RECIPE
from tests.forked import Forked

MLFLOW = {
    "__init__.py": "class MlflowClient:\n    def __init__(self, uri):\n        raise RuntimeError('no store')\n",
    "entities.py": "Metric = Param = RunTag = None\n",
    "environment_variables.py": (
        "class Setting:\n    def is_set(self):\n        return True\n\n\n"
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES = MLFLOW_HTTP_REQUEST_TIMEOUT = Setting()\n"
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT = Setting()\n"
    ),
    "exceptions.py": "class MlflowException(Exception):\n    pass\n",
}
"""A library whose every call raises."""


def test_a_killed_run_goes_on_in_the_same_event_files(tmp_path: Path, shard_dir: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "library" / "mlflow").mkdir(parents=True)
    for name, text in MLFLOW.items():
        (tmp_path / "library" / "mlflow" / name).write_text(text)
    words = [*TEST_RECIPE, f"data.dir={shard_dir}", f"run_dir={tmp_path / 'run'}", "schedule.total_steps=12"]
    words += ["checkpoint.every_steps=4", "logging.layers_every_steps=3"]
    killed = Forked("tests.integration.killed_rank", "0:7:300", *words, "logging.trackers=[tensorboard]", ranks=2)
    killed.wait()
    assert killed.statuses[0] == -signal.SIGKILL, killed.stderr
    both = "logging.trackers=[mlflow,tensorboard]"
    variables = {"PYTHONPATH": str(tmp_path / "library")}
    done = Forked("bert_pretrain.pretrain", *words, both, ranks=2, variables=variables).wait()
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith("mlflow")]
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert told == [
        "mlflow failed (no store); training goes on, and it is tried again",
        f"mlflow lacks {len(rows)} rows of metrics.jsonl; the same command sends them",
    ]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), {"scalars": 0, "histograms": 0}).Reload()
    found = {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    expected: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in values_of(row).scalars.items():
            expected.setdefault(name, []).append((row["step"], float(np.float32(value))))
    assert found == expected
    assert [step for step, _ in found["loss"]] == list(range(1, 13))
    assert events.Tensors("state")[-1].tensor_proto.string_val == [b"finished"]
    histograms = {event.step: event.histogram_value for event in events.Histograms("layers/trust_ratio")}
    by_step = {row["step"]: list(row["trust_ratio"].values()) for row in rows if "trust_ratio" in row}
    assert list(histograms) == list(by_step) == [3, 6, 9, 12]
    for step, values in by_step.items():
        assert (histograms[step].num, histograms[step].sum) == (len(values), pytest.approx(sum(values)))
