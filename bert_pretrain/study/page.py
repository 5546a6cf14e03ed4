"""The files that a study writes: its page in Markdown and in HTML, its numbers, its rows as CSV."""

import csv
import math
import shlex
import sys
import time
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bert_pretrain.files.file_system import replace_file, write_json
from bert_pretrain.html_page import drawn, element, large_figure, page, paragraph, table
from bert_pretrain.study.claims import CLAIMS
from bert_pretrain.study.options import StudyConfig

Row = dict[str, Any]
_BELOW = ("command", "commit")
"""Columns that are listed below the table."""


def sources(config: StudyConfig) -> list[str]:
    """What the sources of the study's claims say, each once, with the place."""
    names = dict.fromkeys(claim.source for claim in config.chosen_claims)
    found = (CLAIMS[name] for name in names if not name.startswith("expected"))
    return [f"{claim.source[0].upper()}{claim.source[1:]} ({claim.place}): {claim.text}." for claim in found]


def markdown(config: StudyConfig, rows: list[Row], sentences: list[str], rule: str) -> str:
    """Question, sources, what was found, the table, how it was found, and the command of every row."""
    columns = [name for name in rows[0] if name not in _BELOW]
    lines = [f"# {config.question}", ""]
    for head, texts in (("Published:", sources(config)), ("Found here:", sentences)):
        lines += [head, "", *(f"- {text}" for text in texts), ""] if texts else []
    lines += ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_cell(row[name]) for name in columns) + " |" for row in rows]
    lines += ["", rule, "", config.chosen.note, "", "![](study.png)", ""]
    lines += ["The first run of each row; the others differ in seed and run_dir:", "", "```bash"]
    lines += [f"{row['command']}  # commit {row['commit']}" for row in rows]
    return "\n".join([*lines, "```", ""])


def as_html(config: StudyConfig, rows: list[Row], sentences: list[str], rule: str, chart: Figure) -> str:
    """The same as one HTML file, with the figure in it and a table that can be sorted."""
    columns = [name for name in rows[0] if name not in _BELOW]
    cells = [[row[name] for name in columns] for row in rows]
    lists = {
        heading: [element("ul", *(element("li", _without_marks(text)) for text in texts))] if texts else []
        for heading, texts in (("Found here", sentences), ("Published", sources(config)))
    }
    alt = f"{config.question}: the numbers are in the table"
    shown = large_figure(drawn(chart), alt, config.question, "chart", "Figure")
    commands = "\n".join(f"{row['command']}  # commit {row['commit']}" for row in rows)
    sections = {
        "Found here": lists["Found here"],
        "Figure": [shown],
        "Table": [table(rule, columns, cells, is_sortable=True), paragraph(config.chosen.note)],
        "Published": lists["Published"],
        "Commands": [paragraph("The first run of each row; the others differ in seed and run_dir."),
                     element("pre", commands)],
    }  # fmt: skip
    return page(config.question, sections)


def _without_marks(text: str) -> str:
    """Without the marks of Markdown."""
    return text.replace("**", "").replace("`", "")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def write_files(
    config: StudyConfig,
    out_dir: Path,
    device: str,
    rows: list[Row],
    sentences: list[str],
    rule: str,
    numbers: dict[str, Any],
    chart: Figure,
) -> None:
    """Write ``study.md``, ``study.html``, ``study.csv`` and ``study.json`` into ``out_dir``; ``chart`` goes into the
    HTML page."""
    replace_file(out_dir / "study.md", markdown(config, rows, sentences, rule).encode())
    replace_file(out_dir / "study.html", as_html(config, rows, sentences, rule, chart).encode())
    replace_file(out_dir / "study.csv", as_csv(rows).encode())
    result = {
        "what": config.question,
        "scale": config.scale,
        "date": time.strftime("%Y-%m-%d"),
        "device": device,
        "command": command_line(config),
        "sources": sources(config),
        "verdicts": sentences,
        "rule": rule,
        "note": config.chosen.note,
        "rows": rows,
        **numbers,
        "options": asdict(config),
    }
    write_json(out_dir / "study.json", _for_json(result))


def command_line(config: StudyConfig) -> str:
    """The command as it was given, but for ``out_dir``; where it was not, the study and its scale."""
    words = [word for word in sys.argv[1:] if not word.startswith("out_dir=")]
    given = words[words.index(config.name) + 1 :] if config.name in words else [f"scale={config.scale}"]
    return shlex.join(["bert-pretrain", "study", config.name, *given])


def print_page(out_dir: Path) -> None:
    """Print ``study.md``, and which files there are."""
    print(f"\n{(out_dir / 'study.md').read_text('utf-8')}\nwrote {out_dir}/study.md, .html, .json, .csv, .png and .svg")


def as_csv(rows: list[Row]) -> str:
    """The rows as CSV below a line of names."""
    text = StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _for_json(value: Any) -> Any:
    """``value``, in which None stands for what JSON lacks: infinite numbers and nan."""
    if isinstance(value, dict):
        return {key: _for_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_for_json(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
