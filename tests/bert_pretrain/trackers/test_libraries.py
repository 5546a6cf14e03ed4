"""Each tracker with its real library: what its own reader reads back is what ``metrics.jsonl`` has."""

import json
import sqlite3
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from bert_pretrain.errors import ConfigError
from bert_pretrain.options.stored_options import flat
from bert_pretrain.trackers.choice import load_trackers
from bert_pretrain.trackers.tracker import STOPPED, TrackedRun, Tracker, key_of, values_of

Found = dict[str, list[tuple[int, float]]]
"""By name of a value, its steps and values in the order of their steps."""
ROWS = [
    {"step": 0, "eval_loss": 5.25},
    {"step": 1, "loss": 5.1, "lr": 1e-3, "samples_seen": 3_000_000_001},
    {"step": 2, "loss": 4.9, "lr": 9e-4, "samples_seen": 3_000_000_013},
    {"step": 2, "trust_ratio": {"a.weight": 0.25, "b": 2.5}, "weight_norm": {"a.weight": 1.0, "b": 3.0}},
    {"step": 3, "loss": 4.7, "lr": 8e-4, "samples_seen": 3_000_000_025},
    {"step": 3, "eval_loss": 4.8},
]
AGAIN = {"step": 3, "loss": 4.4, "lr": 8e-4, "samples_seen": 3_000_000_037}
NAMES = ("tensorboard", "wandb", "mlflow", "trackio")


def read_tensorboard(run: TrackedRun) -> Found:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.run_dir / "tensorboard"), {"scalars": 0}).Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def read_mlflow(run: TrackedRun) -> Found:
    from mlflow import MlflowClient

    client = MlflowClient(run.mlflow_uri)
    found = client.search_runs([client.get_experiment_by_name(run.project).experiment_id])
    assert len(found) == 1, "one run, however often it was opened"
    info = found[0].info
    names = found[0].data.metrics
    by_time = {name: client.get_metric_history(info.run_id, name) for name in names}
    return {name: [(point.step, point.value) for point in points] for name, points in by_time.items()}


def read_trackio(run: TrackedRun) -> Found:
    from trackio.utils import TRACKIO_DIR

    (path,) = TRACKIO_DIR.glob("*.db")
    found = defaultdict(list)
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT step, metrics FROM metrics WHERE run_name = ? ORDER BY id", (run.id,))
        for step, metrics in rows:
            for name, value in json.loads(metrics).items():
                if isinstance(value, int | float):
                    found[name].append((step, value))
    return found


def wandb_records(path: Path) -> list[bytes]:
    """The records of a .wandb file: 7 bytes of header, then blocks of 32 KiB as in LevelDB's log."""
    content, place, whole, part = path.read_bytes(), 7, [], b""
    while place + 7 <= len(content):
        if (rest := 32768 - place % 32768) < 7:
            place += rest
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        part += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            whole.append(part)
            part = b""
    return whole


def all_wandb_records(run: TrackedRun) -> list[Any]:
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # waits, as the end of a process does: wandb's service may still write after an offline run ended
    paths = sorted(run.run_dir.glob("wandb/offline-run-*/run-*.wandb"))
    return [Record.FromString(content) for path in paths for content in wandb_records(path)]


def wandb_items(items: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def read_wandb(run: TrackedRun) -> Found:
    found = defaultdict(list)
    for record in all_wandb_records(run):
        if record.WhichOneof("record_type") == "history":
            items = wandb_items(record.history.item)
            row = {name: value for name, value in items.items() if not name.startswith(("_", "layers/"))}
            for name, value in values_of(row).scalars.items():
                found[name].append((row["step"], value))
    return found


READERS: dict[str, Callable[[TrackedRun], Found]] = {
    "tensorboard": read_tensorboard,
    "wandb": read_wandb,
    "mlflow": read_mlflow,
    "trackio": read_trackio,
}


def expected(rows: list[dict[str, Any]], name: str) -> Found:
    found = defaultdict(list)
    for row in rows:
        for key, value in values_of(row).scalars.items():
            found[key].append((row["step"], float(np.float32(value)) if name == "tensorboard" else value))
    return found


@pytest.fixture(params=NAMES)
def tracker(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, TrackedRun]:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when trackio is first imported
    pytest.importorskip(request.param, reason="not installed")
    monkeypatch.chdir(tmp_path)  # mlflow's default for artifacts
    run_dir = tmp_path / "demo"
    run_dir.mkdir()
    config = {"seed": 1, "optimizer": {"lr": 0.01}}
    return request.param, TrackedRun(run_dir, "proj", config, "offline", f"sqlite:///{tmp_path}/m.db", "demo-1")


def opened(name: str, run: TrackedRun, step: int) -> Tracker:
    return import_module(f"bert_pretrain.trackers.{name}").open_run(run, step)


def send(tracker: Tracker, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if key_of(row) not in tracker.held:
            tracker.log_row(row)
            tracker.held.add(key_of(row))


def test_values_read_back_are_those_of_the_rows(tracker: tuple[str, TrackedRun]) -> None:
    """Over three processes: the second begins at step 2, whose layers were not sent yet; the third is rewound."""
    name, run = tracker
    first = opened(name, run, 0)
    send(first, [row for row in ROWS if "trust_ratio" not in row])
    (run.run_dir / "checkpoints" / "step_00000003").mkdir(parents=True)
    first.log_checkpoint(run.run_dir / "checkpoints" / "step_00000003", 3)
    first.finish(STOPPED)
    if name == "wandb":
        time.sleep(1.1)  # it names the folder of an offline process by the second
    second = opened(name, run, 2)
    lost = {("training", 3), ("evaluation", 3)} if name == "tensorboard" else set()  # it forgets what comes again
    assert second.held == {key_of(row) for row in ROWS if "trust_ratio" not in row} - lost
    send(second, ROWS)
    if name in ("tensorboard", "mlflow"):
        assert READERS[name](run) == expected(ROWS, name)
    second.finish(STOPPED)
    if name == "wandb":
        time.sleep(1.1)
    third = opened(name, run, 3)
    assert third.held == {key_of(row) for row in ROWS}
    third.forget(2)
    send(third, [*ROWS[:4], AGAIN])
    third.finish("finished")
    found = READERS[name](run)
    kept = [*ROWS[:4], AGAIN] if name == "tensorboard" else [*ROWS, AGAIN]
    assert {key: found[key] for key in expected(kept, name)} == expected(kept, name)


@dataclass
class Content:
    """What a tracker has beside the values."""

    config: dict[str, str]
    """By the full name of an option."""
    histograms: dict[str, tuple[int, float]]
    """By name: how many values, and their largest. mlflow has none."""
    plots: list[str]
    checkpoint: str
    state: str
    """Ours."""
    outcome: Any
    """The tracker's own word for it; trackio and tensorboard have none."""


def tensorboard_content(run: TrackedRun) -> Content:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.run_dir / "tensorboard"), {"histograms": 0, "images": 0}).Reload()

    def text(name: str) -> str:
        return events.Tensors(name)[-1].tensor_proto.string_val[0].decode()

    rows = [line.strip("| ").split(" | ") for line in text("config").splitlines()[2:]]
    tags = events.Tags()
    values = {name: events.Histograms(name)[-1].histogram_value for name in tags["histograms"]}
    histograms = {name: (int(value.num), value.max) for name, value in values.items()}
    plots = [name for name in tags["images"] if events.Images(name)[-1].encoded_image_string[:4] == b"\x89PNG"]
    return Content(dict(rows), histograms, plots, text("checkpoint"), text("state"), None)


def wandb_content(run: TrackedRun) -> Content:
    found, logged, config = defaultdict(list), {}, {}
    for record in all_wandb_records(run):
        found[record.WhichOneof("record_type")].append(record)
    for record in found["history"]:
        logged |= wandb_items(record.history.item)
    for record in found["run"]:
        config |= wandb_items(record.run.config.update)
    kinds = {name.removesuffix("/_type"): kind for name, kind in logged.items() if name.endswith("/_type")}
    counts = [name for name, kind in kinds.items() if kind == "histogram"]
    histograms = {name: (sum(logged[f"{name}/values"]), logged[f"{name}/bins"][-1]) for name in counts}
    plots = [name for name, kind in kinds.items() if kind == "image-file"]
    for name in plots:
        assert list(run.run_dir.glob(f"wandb/offline-run-*/files/{logged[f'{name}/path']}"))
    (file,) = found["artifact"][-1].artifact.manifest.contents  # a reference for each file of the checkpoint
    states = [wandb_items(record.summary.update).get("state") for record in found["summary"]]
    config = {name: str(value) for name, value in flat(config).items() if not name.startswith("_")}
    outcome = (len(found["preempting"]), found["exit"][-1].exit.exit_code)
    return Content(config, histograms, plots, file.ref, [state for state in states if state][-1], outcome)


def mlflow_content(run: TrackedRun) -> Content:
    from mlflow import MlflowClient

    client = MlflowClient(run.mlflow_uri)
    (found,) = client.search_runs([client.get_experiment_by_name(run.project).experiment_id])
    plots = [file.path.removesuffix(".png") for file in client.list_artifacts(found.info.run_id, "plots")]
    tags = found.data.tags
    return Content(found.data.params, {}, plots, tags["checkpoint"], tags["state"], found.info.status)


def trackio_content(run: TrackedRun) -> Content:
    from trackio.utils import MEDIA_DIR, TRACKIO_DIR

    (path,) = TRACKIO_DIR.glob("*.db")
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT metrics FROM metrics WHERE run_name = ? ORDER BY id", (run.id,)).fetchall()
        (config,) = connection.execute("SELECT config FROM configs WHERE run_name = ?", (run.id,)).fetchone()
    logged = {name: value for (row,) in rows for name, value in json.loads(row).items()}
    kinds = {name: value["_type"] for name, value in logged.items() if isinstance(value, dict)}
    counts = {name: logged[name] for name, kind in kinds.items() if kind == "trackio.histogram"}
    histograms = {name: (sum(value["values"]), value["bins"][-1]) for name, value in counts.items()}
    plots = [name for name, kind in kinds.items() if kind == "trackio.image"]
    assert all((MEDIA_DIR / logged[name]["file_path"]).is_file() for name in plots)
    known = {name: str(value) for name, value in json.loads(config).items() if not name.startswith("_")}
    return Content(known, histograms, plots, logged["checkpoint"], logged["state"], None)


CONTENTS = {
    "tensorboard": tensorboard_content,
    "wandb": wandb_content,
    "mlflow": mlflow_content,
    "trackio": trackio_content,
}
STATES = (STOPPED, "failed", "diverged", "finished")
OUTCOMES = {"wandb": [(1, 75), (1, 1), (1, 1), (1, 0)], "mlflow": ["KILLED", "FAILED", "FAILED", "FINISHED"]}
"""After each of ``STATES``. wandb: how often the run was preempted, and the last exit code."""


def test_what_a_tracker_has_beside_the_values(tracker: tuple[str, TrackedRun]) -> None:
    """Options, histograms over the layers, plots, the place of a checkpoint, and how each of four processes ended."""
    name, run = tracker
    checkpoint = run.run_dir / "checkpoints" / "step_00000003" / "progress.json"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    (run.run_dir / "plots").mkdir()
    Figure((1, 1)).savefig(run.run_dir / "plots" / "loss.png")
    found = []
    for state in STATES:
        process = opened(name, run, 3 if found else 0)
        send(process, ROWS)
        if not found:
            process.log_checkpoint(checkpoint.parent, 3)
            process.log_plots(run.run_dir / "plots", 3)
        process.finish(state)
        found.append(CONTENTS[name](run))
        if name == "wandb":
            time.sleep(1.1)  # it names the folder of an offline process by the second
    last = found[-1]
    assert last.config == {"seed": "1", "optimizer.lr": "0.01"}
    largest = {f"layers/{kind}": (2, max(ROWS[3][kind].values())) for kind in ("trust_ratio", "weight_norm")}
    assert last.histograms == ({} if name == "mlflow" else largest)
    assert last.plots == ["plots/loss"]
    assert last.checkpoint == (checkpoint.as_uri() if name == "wandb" else str(checkpoint.parent))
    assert [content.state for content in found] == list(STATES)
    assert [content.outcome for content in found] == OUTCOMES.get(name, [None] * 4)


def test_what_a_server_of_trackio_got_is_noted_beside_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The local database knows nothing of a server's runs, so a resume would send all rows again."""
    trackio = pytest.importorskip("trackio", reason="not installed")
    logged: list[Any] = []
    process = SimpleNamespace(id="1", log=lambda values, step: logged.append(step))
    monkeypatch.setattr(trackio, "init", lambda *_, **__: process)
    monkeypatch.setenv("TRACKIO_SERVER_URL", "http://127.0.0.1:9")
    run = TrackedRun(tmp_path, "proj", {}, "offline", None, "demo-1")
    send(opened("trackio", run, 0), ROWS)
    second = opened("trackio", run, 3)
    assert second.held == {key_of(row) for row in ROWS}
    second.forget(2)
    send(opened("trackio", run, 2), [*ROWS[:4], AGAIN])
    assert logged == [row["step"] for row in (*ROWS, AGAIN)]


def test_mlflow_refuses_an_address_that_is_none(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="not installed")
    module = import_module("bert_pretrain.trackers.mlflow")
    with pytest.raises(ConfigError, match=r"logging.mlflow_uri is 'gopher://x'"):
        module.check(TrackedRun(tmp_path, "p", {}, "offline", "gopher://x"))


class Refuses(BaseHTTPRequestHandler):
    """A server that lets nobody in."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b"You are not authenticated.")

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


def test_an_mlflow_server_that_refuses_the_user_is_a_mistake(tmp_path: Path) -> None:
    """Before the run begins; one that was begun goes on."""
    pytest.importorskip("mlflow", reason="not installed")
    with ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        run = TrackedRun(tmp_path, "p", {}, "offline", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(ConfigError, match=r"mlflow refuses this user at logging.mlflow_uri=http://127") as caught:
            load_trackers(["mlflow"], run)
        assert "\n" not in str(caught.value)
        (tmp_path / "config.yaml").touch()
        load_trackers(["mlflow"], run)
        server.shutdown()
