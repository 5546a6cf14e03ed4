"""Copies finished studies to the results page.

    python scripts/keep_study.py "2-core x86_64" runs/study/optimizers_toy

Copies ``study.json``, ``.csv`` and ``.svg`` of each OUT_DIR to ``scripts/results``; then run
``write_results.py``. The commands of the rows stand in the CSV. Paths begin at the folder of OUT_DIR, those of shards
at their own.
"""

import json
import re
from pathlib import Path

from repository_root import ROOT
from results_file import argument_parser, write_result

KEPT = ("date", "command", "sources", "verdicts", "fits", "cpu_hours", "searched", "curves")


def read(path: Path) -> str:
    """The text of a file of a study, without the folders of the machine that it ran on."""
    text = path.read_text(encoding="utf-8").replace(f"{path.parent.resolve().parent}/", "")
    return re.sub(r"\bdata\.dir=(/[^\s/]+)+/", "data.dir=", text)


def main() -> None:
    """Copy each of the studies."""
    parser = argument_parser(__doc__)
    parser.add_argument("device", help="the device that they ran on, in words")
    parser.add_argument("out_dirs", metavar="OUT_DIR", type=Path, nargs="+")
    given = parser.parse_args()
    for out_dir in given.out_dirs:
        study = json.loads(read(out_dir / "study.json"))
        kind = "cpu" if "CPU" in study["device"] else "gpu"
        name = f"{kind}_{study['date']}_study_{study['options']['name']}_{study['scale']}"
        path = ROOT / "scripts" / "results" / f"{name}.json"
        note = f"{study['note']} {study['rule']}"
        what = f"Study, scale {study['scale']}: {study['what']}"
        kept = {key: study[key] for key in KEPT if key in study}
        rows = [{name: value for name, value in row.items() if name != "command"} for row in study["rows"]]
        write_result(path, what, rows, note, **kept, device=given.device)
        for kind in (".csv", ".svg"):
            path.with_suffix(kind).write_text(read(out_dir / f"study{kind}"), encoding="utf-8")


if __name__ == "__main__":
    main()
