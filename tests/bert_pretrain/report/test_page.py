"""The page of a run and of several: its numbers, its references, and runs in every state."""

import json
import math
import os
import re
import time
from pathlib import Path

import pytest

from bert_pretrain.cli import COMMANDS
from bert_pretrain.errors import ConfigError
from bert_pretrain.html_page import Html, is_page
from bert_pretrain.report.run import main, write_report
from bert_pretrain.report.run_facts import facts, headline, read_run
from tests.bert_pretrain.report.made_runs import (
    FINISHED,
    OPTIONS,
    PRINTS,
    START,
    end,
    evaluation,
    layers,
    make_run,
    start,
    training,
)
from tests.bert_pretrain.test_html_page import check_page

WHOLE = [start(START), end(START + 3 * 3600, "finished")]
OTHER = {"train": {"samples": 320, "fingerprint": "t2"}, "heldout": {"samples": 32, "fingerprint": "h2"}}


def report(*words: str) -> None:
    main(list(words))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages with empty drawings: drawing takes longer than all else."""
    monkeypatch.setattr("bert_pretrain.report.page.drawn", lambda _: Html('<svg viewBox="0 0 1 1"></svg>'))
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, path, **__: path.touch())


def refused(capsys: pytest.CaptureFixture, *words: str) -> str:
    """The one line that the command prints when it refuses."""
    with pytest.raises(SystemExit) as raised:
        main(list(words))
    assert raised.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def table_rows(page: str, caption: str) -> list[list[str]]:
    """The cells of the table with this caption, tags left out."""
    table = re.search(rf"<table[^>]*><caption><span>{caption}.*?</table>", page, re.S)
    assert table
    rows = re.findall(r"<tr>(.*?)</tr>", table[0], re.S)
    return [[re.sub("<.*?>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.S)] for row in rows]


def test_the_page_of_a_finished_run_has_the_numbers_of_its_files(tmp_path: Path, capsys) -> None:
    run = make_run(tmp_path / "a", FINISHED, WHOLE)
    report(f"run_dir={run}")
    page = (run / "report.html").read_text()
    found = check_page(page)
    shown = dict(table_rows(page, "What, where, when, how far")[1:])
    hidden, feed_forward, vocabulary, positions, depth = 64, 128, 100, 32, 2
    attention = 4 * (hidden * hidden + hidden) + 2 * hidden
    layer = attention + 2 * hidden * feed_forward + feed_forward + hidden + 2 * hidden
    heads = hidden * hidden + hidden + 2 * hidden + vocabulary + hidden * hidden + hidden + 2 * hidden + 2
    parameters = (vocabulary + positions + 2) * hidden + 2 * hidden + depth * layer + heads
    assert f": {parameters:,} parameters" in shown["model"]
    assert shown["state"] == "finished"
    assert shown["host"] == "node7"
    assert shown["program"] == "abc1234; torch 2.13.0"
    assert shown["device"] == "8 x H200, bf16"
    assert shown["first weights"] == "random, seed 42"
    assert "320 training and 32 held-out samples of up to 32 tokens, static masks" in shown["data"]
    assert shown["batch"] == "16 samples a step, up to 8 of them at once on a rank"
    assert shown["optimizer"] == "nvlamb, learning rate 0.004, 25% of the steps warm-up, weight decay 0.01"
    assert shown["steps planned"] == "40, 640 samples"
    assert shown["steps done"] == "40, 640 samples, 2.00 passes over the data"
    assert shown["wall time"] == "3h00m"
    assert shown["real tokens per second, median"] == "1,030, MFU 31%"
    assert shown["MLM loss, last batch"] == "2.2500 nats"
    assert shown["held-out MLM loss at step 0"] == "4.6000 nats"
    assert shown["held-out MLM loss"] == f"2.3750 nats after step 40, perplexity {math.exp(2.375):.1f}"
    assert shown["held-out MLM accuracy"] == "0.1250"
    evaluations = table_rows(page, "On the held-out shards")[1:]
    assert evaluations == [
        [f"{row['step']:,}", f"{16 * row['step']:,}", f"{row['eval_mlm_loss']:.4f}",
         f"{math.exp(row['eval_mlm_loss']):,.1f}", "0.1250", "0.5625"]
        for row in FINISHED if "eval_loss" in row
    ]  # fmt: skip
    assert found.tags.count("figure") == 6 + 3
    labels = [str(attributes["aria-label"]) for tag, attributes in found.attributes if tag == "svg"]
    assert "mlm_loss: first 4, last 2.25; a, eval_mlm_loss: first 4.6, last 2.375" in labels[0]
    assert {"#layers_trust_ratio", "#layers"} <= set(found.references)
    assert json.loads((run / "config.yaml").read_text()) == json.loads(
        next(text for tag, text in found.texts if tag == "pre")
    )
    printed = capsys.readouterr().out
    assert all(value in printed for value in shown.values())
    assert sorted(path.name for path in (run / "plots").iterdir())[0] == "accuracy.png"


SCRIPT = "<script>alert(1)</script>\"'&"


def test_text_of_the_run_cannot_become_markup(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    name = "_<b>$a$"
    sessions = [start(START, host=SCRIPT, version=SCRIPT), end(START + 1, "failed", SCRIPT)]
    changed = {"init_from": SCRIPT, "data": {"dir": SCRIPT, "sequence_length": 32, "masking": SCRIPT}}
    rows = [row for row in FINISHED if "eval_loss" in row]
    runs = [make_run(tmp_path / place / name, rows, sessions, **changed) for place in "ab"]
    both = tmp_path / "both.html"
    report(f"runs=[{','.join(map(repr, map(str, runs)))}]", f"out={both}")
    found = check_page(both.read_text())
    assert any(tag == "text" and name in text for tag, text in found.texts)  # in the legend
    request.getfixturevalue("undrawn")
    for page in (both, write_report(runs[0])):
        found = check_page(page.read_text())
        assert "b" not in found.tags
        assert any(name in text for _, text in found.texts)
        assert any(SCRIPT in text for _, text in found.texts)


@pytest.mark.parametrize(
    ("rows", "sessions", "running", "expected"),
    [
        (FINISHED[:4], None, True, "running"),  # for ten minutes
        (FINISHED, [start(START), end(START + 60, "finished")], True, "finished"),  # the process draws this page
        (FINISHED[:4], [start(START), end(START + 60, "stopped")], False, "stopped"),
        (FINISHED[:4], [start(START)], False, "ended without a word, as after a kill"),
        ([*FINISHED[:4], training(30, math.nan)], [start(START), end(START + 60, "diverged", "the loss is nan")], False,
         "diverged"),
        ([*FINISHED[:4], training(30, math.nan)], [], False, "diverged"),
        (FINISHED, [], False, "finished"),
        (FINISHED[:4], [], False, "not finished"),
        ([row for row in FINISHED if "eval_loss" not in row], WHOLE, False, "finished"),
        ([], [start(START)], True, "running"),
        ([evaluation(0, 4.6)], [start(START)], True, "running"),
        ([], [], False, "not finished"),
    ],
)  # fmt: skip
def test_runs_in_every_state(
    tmp_path: Path, undrawn: None, rows: list, sessions: list | None, running: bool, expected: str
) -> None:
    sessions = [start(time.time() - 600, 0)] if sessions is None else sessions
    directory = make_run(tmp_path / "a", rows, sessions, running)
    run, trained = read_run(directory), [row for row in rows if "mlm_loss" in row]
    page = write_report(directory).read_text()
    found = check_page(page)
    assert dict(headline(run))["state"] == expected
    assert dict(facts(run))["steps done"].startswith(f"{trained[-1]['step']}," if trained else "no step")
    assert ("No step is logged yet." in page) == (not rows)
    assert ("On the held-out shards" in page) == any("eval_loss" in row for row in rows)
    figures = (6 if trained else 3 if rows else 0) + 3 * any("trust_ratio" in row for row in rows)
    assert found.tags.count("figure") == figures
    if expected == "running" and trained:
        assert dict(headline(run))["left, about"].startswith("1")  # 20 of 40 steps in ten minutes
        assert dict(facts(run))["ended"] == "not yet"
    if "the loss is nan" in str(sessions):
        assert dict(facts(run))["state"] == "diverged: the loss is nan"


def test_wall_time_is_that_of_all_sessions(tmp_path: Path, undrawn: None) -> None:
    """A minute, a killed one that wrote its last row after two, and one that is dead since its metrics were written."""
    sessions = [start(START), end(START + 60, "stopped"), start(START + 1000, 10),
                start(START + 5000, 20, before=START + 1120), end(START + 5240, "finished")]  # fmt: skip
    run = make_run(tmp_path / "a", FINISHED, sessions)
    assert read_run(run).seconds() == 60 + 120 + 240
    page = write_report(run).read_text()
    assert [row[3] for row in table_rows(page, "Each start of the run")[1:]] == ["stopped", "killed", "finished"]
    (run / "sessions.jsonl").write_text(json.dumps(start(START)) + "\n{cut off")
    os.utime(run / "metrics.jsonl", (START + 7, START + 7))
    assert read_run(run).seconds() == 7


def test_runs_side_by_side(tmp_path: Path, undrawn: None, capsys) -> None:
    worse = [evaluation(0, 4.6), training(10, 4.5), training(20, 4.25), evaluation(20, 4.0)]
    first = make_run(tmp_path / "a", FINISHED, WHOLE)
    second = make_run(tmp_path / "b", worse, [start(START), end(START + 60, "stopped")],
                      optimizer={"algorithm": "adamw", "lr": 0.001, "weight_decay": 0.01})  # fmt: skip
    out = tmp_path / "both.html"
    for _ in range(2):  # a page of ours may be replaced
        report(f"runs=[{first},{second}]", f"out={out}")
    printed, page = capsys.readouterr().out, out.read_text()
    assert "different shards" not in printed + page
    found = check_page(page)
    rows = table_rows(page, "Where each run stands")
    assert rows[1:] == [
        ["a", "finished", "2.3750", "0.1250", "40", "40", "640", "1,030", "3h00m"],
        ["b", "stopped", "4.0000", "0.1250", "20", "20", "320", "1,020", "1m00s"],
    ]
    assert table_rows(page, "Options of which")[1:] == [
        ["optimizer.algorithm", "nvlamb", "adamw"], ["optimizer.lr", "0.004", "0.001"],
    ]  # fmt: skip
    assert found.tags.count("figure") == 6


@pytest.mark.parametrize(
    ("data", "message", "figures"),
    [
        (OTHER, "a and b were trained and evaluated on different shards: their losses may not be compared", 3 * 2 + 3),
        (OTHER | {"heldout": PRINTS["heldout"]},
         "a and b were trained on different shards: their training losses may not be compared", 6),
        (OTHER | {"train": PRINTS["train"]},
         "a and b were evaluated on different shards: their losses may not be compared", 3 * 2 + 3),
    ],
)  # fmt: skip
def test_losses_on_different_shards_are_not_drawn_together(
    tmp_path: Path, undrawn: None, capsys, data: dict, message: str, figures: int
) -> None:
    first = make_run(tmp_path / "a", FINISHED, WHOLE)
    second = make_run(tmp_path / "b", FINISHED, [start(START, data=data), end(START + 1, "finished")])
    report(f"runs=[{first},{second}]", f"out={tmp_path / 'both.html'}")
    page = (tmp_path / "both.html").read_text()
    assert capsys.readouterr().out.count(message) == page.count(message) == 1
    assert check_page(page).tags.count("figure") == figures


def test_shards_of_runs_without_a_record(tmp_path: Path, undrawn: None) -> None:
    """By the directory of the shards, and by the newest checkpoint."""
    runs = [make_run(tmp_path / name, FINISHED, []) for name in "abc"]
    for run, print_ in zip(runs[:2], ("x", "y"), strict=True):
        checkpoint = run / "checkpoints/step_00000040"
        checkpoint.mkdir(parents=True)
        (checkpoint / "progress.json").write_text(json.dumps({"step": 40, "data_fingerprint": print_}))
    for pair, different in ((runs[:2], True), (runs[::2], False)):
        report(f"runs=[{pair[0]},{pair[1]}]", f"out={tmp_path / 'both.html'}")
        assert ("different shards" in (tmp_path / "both.html").read_text()) == different


def test_mistakes_are_one_line_each(tmp_path: Path, capsys, monkeypatch) -> None:
    run = make_run(tmp_path / "a", FINISHED, WHOLE)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.html").write_text("<p>mine</p>")
    monkeypatch.chdir(tmp_path)
    for words, expected in (
        ((), "run_dir and runs: neither given"),
        (("run_dir=a", "runs=[a,a]"), "both given"),
        (("runs=a",), "runs is 'a'; allowed: a list, as in runs=[a]"),
        (("run_dir=empty",), "run_dir is 'empty', which holds no run"),
        (("runs=[a,empty]",), "runs is 'empty', which holds no run"),
        (("run_dir=a", "out=notes.html"), "out notes.html exists and is no page of this program"),
        (("run_dir=a", "out=empty"), "out is 'empty', a directory"),
        (("run_dir=a", "live=true", "out=x.html"), "live=true writes no file"),
        (("run_dir=a", "port=70000"), "port is 70000"),
        (("run_dir=empty", "--live"), "holds no run"),
        (("run_dir=a", "--life"), "--life is not a flag"),
    ):
        assert expected in refused(capsys, *words)
    assert (tmp_path / "notes.html").read_text() == "<p>mine</p>"
    (run / "config.yaml").write_text("model: [")
    assert "config.yaml is damaged" in refused(capsys, "run_dir=a")


TRAINED = training(30, 2.0)


@pytest.mark.parametrize(
    "row",
    [
        {**TRAINED, "mlm_loss": "2"}, {**TRAINED, "loss": None}, {"step": 30, "loss": 1.0, "mlm_loss": 1.0},
        {"step": 30, "eval_loss": 1.0, "eval_mlm_loss": 1.0}, {"step": 30, "trust_ratio": {"a": 1.0}},
        {**layers(30), "weight_norm": {"a": None}}, {**layers(30), "weight_norm": 1.0}, {**TRAINED, "step": -5},
        {**TRAINED, "lr": {"a": 1.0}}, {**TRAINED, "step": 1e400},
    ],
)  # fmt: skip
def test_rows_without_their_numbers_are_left_out(tmp_path: Path, row: dict) -> None:
    assert read_run(make_run(tmp_path / "run", [*FINISHED, row], [start(START)])).rows == FINISHED


@pytest.mark.parametrize("change", [{"host": None}, {"step": "x"}, {"data": 3}])
def test_sessions_without_their_facts_are_left_out(tmp_path: Path, change: dict) -> None:
    broken = {name: value for name, value in (start(START + 60) | change).items() if value is not None}
    run = read_run(make_run(tmp_path / "run", FINISHED, [start(START), broken]))
    assert [one["time"] for one in run.sessions] == [START]


@pytest.mark.parametrize(
    "damage", [{"seed": None}, {"data": None}, {"optimizer": None}, {"optimizer": {"algorithm": "nvlamb", "lr": "x"}},
               {"model": OPTIONS["model"] | {"hidden_size": "x"}}],
)  # fmt: skip
def test_a_damaged_configuration_is_told_before_anything_is_drawn(tmp_path: Path, damage: dict) -> None:
    run = make_run(tmp_path / "run", FINISHED, [start(START)])
    options = {name: value for name, value in {**OPTIONS, "init_from": "", **damage}.items() if value is not None}
    (run / "config.yaml").write_text(json.dumps(options))
    with pytest.raises(ConfigError, match=r"run_dir .*/run: its config\.yaml is damaged \(.*put a copy of"):
        read_run(run)


def test_a_directory_that_cannot_be_written(tmp_path: Path, capsys, monkeypatch) -> None:
    run = make_run(tmp_path / "a", FINISHED, WHOLE)

    def fails(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", fails)
    assert "run_dir" in (line := refused(capsys, f"run_dir={run}"))
    assert "Permission denied" in line
    assert "give out=FILE" in line


def test_the_command_is_the_one_in_the_table() -> None:
    assert COMMANDS["report"][0] == "bert_pretrain.report.run:main"
    assert main.command[0] == "report"


def test_pages_of_the_program_are_recognised(tmp_path: Path, undrawn: None) -> None:
    run = make_run(tmp_path / "a", [], [])
    assert is_page(write_report(run))
    assert not is_page(run / "config.yaml")
