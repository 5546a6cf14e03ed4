"""The results page: findings first, then measurements by subject, and all of it from the files."""

import csv
import json
import re
import tomllib
from pathlib import Path

import findings
import pytest
import write_results
import yaml

from tests.conftest import ROOT

FILES = list((ROOT / "scripts/results").glob("*.json"))


def result(folder: Path, name: str, **more) -> Path:
    path = folder / f"{name}.json"
    given = {"what": name, "date": "2026-01-02", "device": "a CPU, idle", "commit": "abc1234", "command": "run"}
    path.write_text(json.dumps(given | {"rows": [{"a": 1}]} | more))
    return path


def study(folder: Path, **more) -> Path:
    given = {
        "what": "Study, scale small: Steps and samples",
        "command": "bert-pretrain study batch_scaling scale=small",
        "sources": ["NVIDIA's article (Table 2): twice the samples."],
        "verdicts": ["**AdamW**: critical batch size 812 (95 %: 700 to 941), S_min 100 steps."],
        "rows": [{"optimizer": "AdamW", "batch": batch, "steps": 9.5} for batch in range(20)],
        "note": "What a reader may not conclude.",
    }
    return result(folder, "cpu_2026-01-02_study_batch_scaling_small", **(given | more))


def test_the_page_is_the_one_that_the_files_give() -> None:
    assert (ROOT / "RESULTS.md").read_text() == write_results.page(FILES), "python scripts/write_results.py"


def test_every_file_is_on_the_page_once() -> None:
    text = write_results.page(FILES)
    for path in FILES:
        what = json.loads(path.read_text())["what"]
        assert f"\n### {what}\n" in text or f"[{path.name}]" in text, path.name
    assert len(re.findall(r"^### ", text, re.MULTILINE)) + len(re.findall(r"^- \[", text, re.MULTILINE)) >= len(FILES)
    assert all(name in write_results.newest(FILES) for names in write_results.SUBJECTS.values() for name in names)
    assert all(name in write_results.newest(FILES) for name, *_ in findings.FINDINGS)


def test_the_findings_fit_on_one_screen() -> None:
    folded = re.compile(r"<details>.*?</details>", re.DOTALL)
    lines = folded.sub("", write_results.page(FILES)).splitlines()
    end = next(row for row, line in enumerate(lines) if line.startswith("## ") and line != "## Findings")
    assert sum(len(line) // 150 + 1 for line in lines[:end] if not line.startswith(("- ", "!["))) < 60


def test_until_the_central_study_is_there_the_page_says_so(tmp_path: Path) -> None:
    text = write_results.page([result(tmp_path, "cpu_2026-01-01_save")])
    assert text.index("Not there yet: how far the batch") < text.index("## Speed of training")


def test_the_central_study_comes_first_with_its_figure_numbers_and_verdicts(tmp_path: Path) -> None:
    path = study(tmp_path)
    path.with_suffix(".svg").write_text("<svg/>")
    path.with_suffix(".csv").write_text("optimizer,command\n")
    text = write_results.page([path, result(tmp_path, "cpu_2026-01-01_save")])
    assert "Not there yet" not in text
    parts = [
        "## Findings", "### Study, scale small: Steps and samples", f"![](scripts/results/{path.stem}.svg)",
        f"[{path.stem}.csv]", "Published:", "Found here:", "critical batch size 812", "<details><summary>20 rows",
        "| 19 | 9.5 |", "What a reader may not conclude.", "## Speed of training",
    ]  # fmt: skip
    assert sorted(parts, key=text.index) == parts
    assert "2026-01-02, a CPU, idle, commit abc1234: `bert-pretrain study batch_scaling scale=small`" in text


def test_of_two_runs_the_newer_is_shown_and_the_older_named(tmp_path: Path) -> None:
    old = result(tmp_path, "cpu_2026-01-09_save", what="older", date="2026-01-01")
    new = result(tmp_path, "cpu_2026-01-02_save", what="newer")
    text = write_results.page([old, new])
    assert "### newer" in text
    assert "### older" not in text
    assert f"- [{old.name}](scripts/results/{old.name}): older" in text


def test_a_finding_takes_its_numbers_from_the_one_row_that_it_names() -> None:
    rows = [{"model": "a", "way": "on", "s": 1.25}, {"model": "a", "way": "off", "s": 3.0}]
    found = findings.sentence("{row[model=a & way=on][s]:.1f} s against {row[way=off][s]}", {"rows": rows})
    assert found == "1.2 s against 3.0"
    with pytest.raises(KeyError, match="2 rows with model=a"):
        findings.sentence("{row[model=a][s]}", {"rows": rows})


def test_a_study_is_kept_with_verdicts_fits_and_commands(tmp_path: Path, monkeypatch) -> None:
    import keep_study

    out = tmp_path / "out"
    out.mkdir()
    row = {"optimizer": "AdamW", "batch": 64, "command": "bert-pretrain pretrain seed=1"}
    content = {
        "what": "Steps", "scale": "small", "date": "2026-01-02", "device": "a CPU", "command": "c", "rows": [row],
        "sources": ["s"], "verdicts": ["v"], "rule": "r.", "note": "n.", "fits": {"AdamW": {"batch": 1.0}},
        "cpu_hours": 3.0, "searched": [], "curves": [], "options": {"name": "batch_scaling"},
    }  # fmt: skip
    (out / "study.json").write_text(json.dumps(content))
    (out / "study.csv").write_text(f"optimizer,command\nAdamW,bert-pretrain pretrain seed=1 run_dir={out}/AdamW\n")
    (out / "study.svg").write_text("<svg/>")
    (tmp_path / "scripts/results").mkdir(parents=True)
    monkeypatch.setattr(keep_study, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["keep_study.py", "2-core", str(out)])
    keep_study.main()
    path = tmp_path / "scripts/results/cpu_2026-01-02_study_batch_scaling_small.json"
    kept = json.loads(path.read_text())
    assert (kept["verdicts"], kept["fits"], kept["cpu_hours"]) == (["v"], {"AdamW": {"batch": 1.0}}, 3.0)
    assert kept["rows"] == [{"optimizer": "AdamW", "batch": 64}]
    assert [row["command"] for row in csv.DictReader(path.with_suffix(".csv").open())] == [
        "bert-pretrain pretrain seed=1 run_dir=out/AdamW"
    ]
    assert "- v" in write_results.page([path])


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {name: citation[name] for name in ("title", "version", "license")} == {
        "title": project["name"],
        "version": project["version"],
        "license": project["license"],
    }
    assert citation["cff-version"] == "1.2.0"
