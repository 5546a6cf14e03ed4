"""The notebooks run, on little text and for few steps; their outputs are those of their cells; the site shows them."""

import json
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = {
    "own_bert": {"TEXTS": 12, "VOCABULARY": 300, "STEPS": 10, "PROCESSES": 1},
    "domain_bert": {"TEXTS": 25, "STEPS": 10},
}
MADE = {
    "own_bert": ["runs/mine/report.html", "my-bert/model.safetensors", "my-bert/README.md"],
    "domain_bert": ["runs/domain/report.html", "before.json", "after.json"],
}
"""What the commands of each leave, besides what the cells show."""


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def kinds(cell: dict) -> list[str]:
    """What a cell shows: the kinds of its outputs."""
    return sorted({kind for output in cell["outputs"] for kind in output.get("data", {"text": None})})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_outputs_are_those_of_the_cells(path: Path) -> None:
    from run_notebooks import fingerprint

    notebook = json.loads(path.read_text())
    rerun = f"run scripts/run_notebooks.py notebooks/{path.name}"
    assert notebook["metadata"]["outputs_of"] == fingerprint(notebook), rerun
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(
        cell["outputs"] for cell in cells if re.search("^!|display|print", "".join(cell["source"]), re.MULTILINE)
    )
    assert any("image/png" in kinds(cell) for cell in cells)
    cells[0]["source"] = "STEPS = 1"
    assert notebook["metadata"]["outputs_of"] != fingerprint(notebook)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_names_no_place_of_a_machine(path: Path) -> None:
    assert path.stat().st_size < 300_000
    shown = "".join("".join(output.get("text", "")) for cell in code_cells(json.loads(path.read_text()))
                    for output in cell["outputs"])  # fmt: skip
    assert shown.count("plan for ") == 1, "what a run will do is said once"
    assert not re.findall(r"(?<![\w.])/(?:home|root|tmp|usr|opt|work)/\S*|\x1b|\r", shown)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    from run_notebooks import execute

    ran = execute(path, tmp_path, **SMALL[path.stem])
    for name in MADE[path.stem]:
        assert (tmp_path / name).stat().st_size > 0
    committed = code_cells(json.loads(path.read_text()))
    for now, before in zip(code_cells(ran), committed, strict=True):
        assert set(kinds(before)) <= set(kinds(now)), "a library may add a warning, but nothing may be missing"
    assert [cell["source"] for cell in code_cells(ran)] == ["".join(cell["source"]) for cell in committed]
    assert str(tmp_path) not in json.dumps(ran)


def test_a_terminal_s_output_becomes_text(tmp_path: Path) -> None:
    from run_notebooks import shown

    text = f"a\r\nread:   0%|   | 0/3 [?]\rread:  66%|## | 2/3\r\n\r\n\x1b[31m{tmp_path}/b\x1b[0m  \r\n"
    assert shown(text, tmp_path) == "a\nb\n"


def test_a_command_that_fails_stops_a_notebook(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    from run_notebooks import execute

    cells = [nbformat.v4.new_code_cell("!true"), nbformat.v4.new_code_cell("!false\nprint('after it')")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "x.ipynb")
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="the command failed"):
        execute(tmp_path / "x.ipynb", tmp_path)


def test_the_site_shows_text_code_outputs_and_figures() -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    from docs_site import notebook_page

    cells = [
        {"cell_type": "markdown", "source": ["# One\n", "[a](../docs/prepare.md) [b](domain_bert.ipynb)"]},
        {"cell_type": "code", "source": "!ls", "outputs": [{"output_type": "stream", "text": ["a\n", "b\n"]}]},
        {
            "cell_type": "code",
            "source": "show()",
            "outputs": [
                {
                    "output_type": "display_data",
                    "data": {"image/png": "iVBORw0K", "text/plain": "x"},
                    "metadata": {"image/png": {"alt": "a figure"}},
                }
            ],
        },
    ]
    page, pictures = notebook_page(json.dumps({"cells": cells}), "one")
    assert page == (
        "# One\n[a](prepare.md) [b](domain_bert.md)\n\n```bash\n!ls\n```\n\n```text\na\nb\n```\n\n"
        "```python\nshow()\n```\n\n![a figure](one_1.png)\n"
    )
    assert pictures == {"one_1.png": b"\x89PNG\r\n"}
