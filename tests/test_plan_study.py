"""The plan of batch_scaling at scale=base: its table in docs/studies.md is what the script prints."""

import re

import pytest

from tests.conftest import ROOT


def test_the_table_in_the_documents_is_that_of_the_script(monkeypatch, capsys) -> None:
    import plan_study

    monkeypatch.setattr("sys.argv", ["plan_study.py"])
    plan_study.main()
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert "\n".join(printed) in (ROOT / "docs/studies.md").read_text(), "python scripts/plan_study.py"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed[2:]]
    # By hand, BERT-base at 128 tokens: 6 FLOPs for each of 85.05 M weights and token, attention, the head at 19 tokens.
    flops = 6 * 85.05e6 * 128 + 12 * 12 * 128**2 * 768 + 6 * 19 * (30522 * 768 + 768**2)
    for row in rows[:-1]:
        hours = float(row[2].removesuffix(" h"))
        assert hours == pytest.approx(26_214_400 * flops / (989e12 * 0.4765) / 3600, rel=0.04)
        assert int(row[0].replace(",", "")) * int(row[1].replace(",", "")) == 26_214_400
        assert float(row[4].removesuffix(" h")) < hours / 6
    for column in (3, 5):
        parts = [float(re.sub(r"[ h,]", "", row[column])) for row in rows]
        assert parts[-1] == pytest.approx(sum(parts[:-1]), abs=3)  # rounded
    one, all_runs = (float(rows[0][column].removesuffix(" h")) for column in (2, 3))
    assert all_runs == pytest.approx(9 * (3 + 5) * one, rel=0.01)
