"""A tracker that fails, blocks or lags never makes the trainer wait, and gets every row once when it can."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from bert_pretrain.errors import ConfigError
from bert_pretrain.trackers import feed as feed_module
from bert_pretrain.trackers.choice import check_installed, load_trackers
from bert_pretrain.trackers.feed import MOST_WAITING, TrackerFeed, TrackerFeeds
from bert_pretrain.trackers.tracker import FINISHED, TrackedRun, key_of, run_id, values_of
from bert_pretrain.training.metrics import MetricsLog, read_rows
from bert_pretrain.training.options import LoggingConfig


class Fake:
    """A tracker in memory."""

    where = "in memory"

    def __init__(self, before_row: Callable[[dict], None] = lambda row: None) -> None:
        self.rows: list[dict] = []
        self.held: set = set()
        self.state, self.before_row = "", before_row

    def log_row(self, row: dict) -> None:
        self.before_row(row)
        self.rows.append(row)

    def forget(self, step: int) -> None:
        self.held = {key for key in self.held if key[1] <= step}
        self.rows = [row for row in self.rows if row["step"] <= step]

    def finish(self, state: str) -> None:
        self.state = state


class Run:
    """A ``MetricsLog`` that feeds trackers."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture, *trackers: Fake, **named: Callable) -> None:
        self.log, self.capsys = MetricsLog(folder / "metrics.jsonl", 10), capsys
        opened: dict[str, Callable] = {f"tracker{i}": lambda step, t=t: t for i, t in enumerate(trackers)}
        for name, open_run in {**opened, **named}.items():
            parts = 0, lambda: read_rows(folder / "metrics.jsonl"), self.log.message
            self.log.trackers._feeds.append(TrackerFeed(name, open_run, *parts))

    def rows(self, *steps: int) -> None:
        for step in steps:
            self.log.row({"step": step, "loss": step + 0.5})

    def close(self) -> list[str]:
        """The lines that were printed."""
        self.log.close(FINISHED)
        return self.capsys.readouterr().out.splitlines()


def steps(tracker: Fake) -> list[int]:
    return [row["step"] for row in tracker.rows]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "FIRST_PAUSE", 0.0)


def test_a_tracker_that_blocks_for_ever_is_not_waited_for(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(feed_module, "FINISH_SECONDS", 0.2)
    blocked = Fake(lambda row: threading.Event().wait())
    other = Fake()
    run = Run(tmp_path, capsys, blocked, other)
    count = 2 * MOST_WAITING
    run.rows(*range(count))  # returns: no row waits for the tracker
    waiting = run.log.trackers._feeds[0]
    assert waiting._queue.qsize() <= MOST_WAITING
    assert waiting.dropped >= count - MOST_WAITING - 1
    lines = run.close()
    assert [line for line in lines if "tracker0" in line] == [
        f"tracker0 does not keep up: {MOST_WAITING} rows wait for it, and the next ones are dropped",
        f"tracker0 does not answer and lacks {count} rows of metrics.jsonl; the same command sends them",
    ]
    assert len(read_rows(tmp_path / "metrics.jsonl")) == count


def test_a_tracker_that_cannot_be_opened_for_ever_is_not_waited_for(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(feed_module, "FINISH_SECONDS", 0.1)
    run = Run(tmp_path, capsys, slow=lambda step: threading.Event().wait())
    run.rows(1, 2)
    assert run.close() == ["slow does not answer and lacks 2 rows of metrics.jsonl; the same command sends them"]


def test_the_end_of_a_run_waits_while_rows_go_through(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(feed_module, "FINISH_SECONDS", 0.5)
    tracker = Fake(lambda row: threading.Event().wait(0.1))
    run = Run(tmp_path, capsys, tracker)
    run.rows(*range(12))
    assert not [line for line in run.close() if "lacks" in line]
    assert steps(tracker) == list(range(12))


def test_a_tracker_that_raises_at_every_call_is_told_of_once(tmp_path: Path, capsys) -> None:
    def refuse(row: dict) -> None:
        raise RuntimeError("no\nserver")

    broken, whole = Fake(refuse), Fake()
    run = Run(tmp_path, capsys, broken, whole)
    run.rows(*range(1, 50))
    lines = run.close()
    told = [line for line in lines if line.startswith("tracker0")]
    assert told == [
        "tracker0 failed (no server); training goes on, and it is tried again",
        "tracker0 lacks 49 rows of metrics.jsonl; the same command sends them",
    ]
    assert (steps(whole), whole.state) == (list(range(1, 50)), FINISHED)


def test_rows_that_failed_are_sent_once_the_tracker_answers(tmp_path: Path, capsys) -> None:
    down = True

    def answer(row: dict) -> None:
        if down and row["step"] > 2:
            raise ConnectionError("down")

    tracker = Fake(answer)
    run = Run(tmp_path, capsys, tracker)
    run.rows(*range(1, 8))
    while not run.log.trackers._feeds[0]._said:
        threading.Event().wait(0.01)
    down = False
    run.rows(8, 9)
    assert [line for line in run.close() if "lacks" in line] == []
    assert steps(tracker) == list(range(1, 10))


def test_rows_that_were_dropped_are_sent_later(tmp_path: Path, capsys) -> None:
    answers = threading.Event()
    tracker = Fake(lambda row: answers.wait())
    run = Run(tmp_path, capsys, tracker)
    run.rows(*range(MOST_WAITING + 50))
    answers.set()
    assert not [line for line in run.close() if "lacks" in line]
    assert sorted(steps(tracker)) == list(range(MOST_WAITING + 50))


def test_a_tracker_that_has_rows_gets_the_others_once(tmp_path: Path, capsys) -> None:
    """After a kill it may lack rows that stand, and have rows that are computed again."""
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": n, "loss": 0.5}) + "\n" for n in (1, 2, 3)))
    tracker = Fake()
    tracker.held = {("training", 1), ("training", 4)}
    run = Run(tmp_path, capsys, tracker)
    run.rows(4, 5)
    run.close()
    assert steps(tracker) == [2, 3, 5]


def test_rows_after_a_rewind_replace_those_before_it(tmp_path: Path, capsys) -> None:
    tracker = Fake()
    run = Run(tmp_path, capsys, tracker)
    run.rows(1, 2, 3, 4)
    run.log.resume(2)
    run.log.row({"step": 3, "loss": 9.0})
    run.close()
    assert [(row["step"], row["loss"]) for row in tracker.rows] == [(1, 1.5), (2, 2.5), (3, 9.0)]
    assert tracker.rows == read_rows(tmp_path / "metrics.jsonl")


def test_other_work_that_fails_leaves_the_rows_alone(tmp_path: Path, capsys) -> None:
    tracker = Fake()
    run = Run(tmp_path, capsys, tracker)
    run.log.trackers.checkpoint(tmp_path, 1)  # Fake knows no checkpoints
    run.rows(1)
    assert len([line for line in run.close() if "failed" in line]) == 1
    assert steps(tracker) == [1]


def test_no_tracker_no_thread_and_no_file(tmp_path: Path) -> None:
    before = threading.active_count()
    run = TrackedRun(tmp_path, "p", {}, "offline", None)
    TrackerFeeds().start([], run, 0, list, pytest.fail)
    assert threading.active_count() == before
    assert not list(tmp_path.iterdir())


def test_values_and_keys_of_rows() -> None:
    layers = {"step": 4, "trust_ratio": {"a": 0.25, "b": 2.0}, "weight_norm": {"a": 1.0}}
    assert values_of(layers).scalars == {"trust_ratio/a": 0.25, "trust_ratio/b": 2.0, "weight_norm/a": 1.0}
    assert values_of(layers).by_layer == {"trust_ratio": [0.25, 2.0], "weight_norm": [1.0]}
    rows = [layers, {"step": 4, "loss": 1.0, "lr": 0.1}, {"step": 4, "eval_loss": 1.0}]
    assert [key_of(row) for row in rows] == [("layers", 4), ("training", 4), ("evaluation", 4)]


def test_runs_of_one_name_have_different_ids_and_keep_them(tmp_path: Path) -> None:
    folders = [tmp_path / place / "demo" for place in ("a", "b")]
    for folder in folders:
        folder.mkdir(parents=True)
    ids = [run_id(folder) for folder in folders]
    assert ids[0] != ids[1]
    assert [run_id(folder) for folder in folders] == ids
    assert run_id(folders[0].rename(tmp_path / "moved")) == ids[0]


def test_runs_of_earlier_versions_keep_their_id(tmp_path: Path) -> None:
    for name in ("old", "older"):
        (tmp_path / name / "wandb").mkdir(parents=True)
    (tmp_path / "old" / "wandb_id").write_text("old-12345678")
    assert (run_id(tmp_path / "old"), run_id(tmp_path / "older")) == ("old-12345678", "older")


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b""])
def test_an_id_that_cannot_be_read_is_told_before_the_run_begins(tmp_path: Path, content: bytes | None) -> None:
    """A folder, and no text; an empty file, as a full disk leaves it, gets an id."""
    path = tmp_path / "tracker_id"
    path.mkdir() if content is None else path.write_bytes(content)
    if content == b"":
        assert run_id(tmp_path).startswith(f"{tmp_path.name}-")
        assert path.read_text() == run_id(tmp_path)
        return
    pytest.importorskip("tensorboard")
    with pytest.raises(ConfigError, match=r"tracker_id cannot be read \(.*; restore it.* or move it away"):
        load_trackers(["tensorboard"], TrackedRun(tmp_path, "p", {}, "offline", None))
    load_trackers([], TrackedRun(tmp_path, "p", {}, "offline", None))


def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bert_pretrain.trackers.choice.find_spec", lambda name: None if name == "mlflow" else name)
    check_installed(["wandb", "trackio"])
    message = r"logging.trackers has mlflow, which is not installed: pip install 'bert-pretrain\[mlflow\]'"
    with pytest.raises(ConfigError, match=message):
        check_installed(["mlflow", "wandb"])


def logging(**options: object) -> LoggingConfig:
    values = {"trackers": [], "project": "p", "mlflow_uri": None, "wandb": None, "wandb_project": None, **options}
    return LoggingConfig(every_steps=1, layers_every_steps=0, **values)


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({}, []),
        ({"wandb": "disabled"}, []),
        ({"wandb": "auto"}, ["wandb"]),
        ({"trackers": ["mlflow", "wandb", "mlflow"], "wandb": "offline"}, ["mlflow", "wandb"]),
    ],
)
def test_the_option_wandb_adds_it_to_the_trackers(options: dict, chosen: list[str]) -> None:
    assert logging(**options).chosen_trackers() == chosen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trackers": ["tensorbord"]}, r"logging.trackers is 'tensorbord'; allowed: .*did you mean tensorboard"),
        ({"trackers": ["wandb"], "wandb": "disabled"}, "logging.trackers has wandb, but logging.wandb is 'disabled'"),
        ({"wandb": "yes"}, "logging.wandb is 'yes'; allowed: disabled, offline, online, auto, null"),
        (
            {"mlflow_uri": "http://me:secret@host:5000"},
            r"logging.mlflow_uri holds a password; give .*_URI",
        ),
        ({"project": " "}, "logging.project is ' '; allowed: a name"),
    ],
)
def test_mistakes_in_the_options(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        logging(**options)
