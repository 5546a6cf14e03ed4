"""Notes the outcome of a stage of ``prove_gpu.sh``, and writes page.md from the JSON that all stages left so far.

python scripts/prove_gpu_page.py OUT
python scripts/prove_gpu_page.py OUT --stage tests --seconds 41 --state passed
"""

import json
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import repository_root  # noqa: F401  makes bert_pretrain importable
from results_file import argument_parser
from write_results import cell

from bert_pretrain.program import commit

Row = dict[str, Any]
STEPS = {"step_base_128": 0.60, "step_large_128": 0.65, "step_large_512": 0.60}
"""Stages of ``bench step``, and the MFU that they should reach on an H200."""
NVLAMB_SHARE = 0.80
"""Share of the copy bandwidth that the NVLAMB step should reach."""
H200_TOKENS = 238_000
"""Real tokens/s of BERT-large at 512 on an H200 at 60 % of a measured rate of 790 TFLOP/s."""
STEP_COLUMNS = (
    "variant", "milliseconds", "real_tokens_per_second", "speedup_over_baseline", "mfu", "mfu_data_sheet",
    "forward_ms", "backward_ms", "optimizer_ms", "peak_memory_bytes",
)  # fmt: skip
OPTIMIZER_COLUMNS = (
    "model", "implementation", "milliseconds", "bytes_per_parameter", "copy_bandwidth_share", "over_adamw_fused",
)  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    """The JSON of a stage; nothing in it if the stage left none."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def shown(value: Any) -> str:
    """A value as text of a table."""
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    return cell(value)


def table(rows: list[Row], columns: tuple[str, ...] | None = None) -> list[str]:
    """Rows as Markdown."""
    if not rows:
        return []
    names = columns or tuple(rows[0])
    cells = [[shown(row.get(name)) for name in names] for row in rows]
    return ["| " + " | ".join(line) + " |" for line in [list(names), ["---"] * len(names), *cells]]


def goals(out: Path) -> list[Row]:
    """What was to be reached, beside what was measured."""
    rows: list[Row] = []
    for name, wanted in STEPS.items():
        best = max(read(out / name / "step.json").get("rows", []), key=lambda row: float(row["mfu"]), default=None)
        sheet = None if best is None else best["mfu_data_sheet"]
        rows.append(
            {
                "goal": f"{name.replace('step_', 'BERT-').replace('_', ' at ')}: MFU of the measured matrix rate",
                "wanted": f"{wanted:.0%}",
                "measured": None if best is None else f"{best['mfu']:.1%} ({best['variant']})",
                "MFU of the data sheet": None if sheet is None else f"{sheet:.1%}",
                "reached": None if best is None else "yes" if best["mfu"] >= wanted else "no",
            }
        )
        if name == "step_large_512":
            rate = 0 if best is None else best["real_tokens_per_second"]
            reached = {"measured": f"{rate:,.0f}", "reached": "yes" if rate >= H200_TOKENS else "no"} if rate else {}
            rows.append({"goal": "real tokens/s of it on an H200", "wanted": f"{H200_TOKENS:,}", **reached})
    for model in ("base", "large"):
        found = [row for row in read(out / "optimizer.json").get("rows", []) if row["model"] == model]
        shares = [row["copy_bandwidth_share"] for row in found if row["implementation"] == "nvlamb/fused"]
        row = {"goal": f"NVLAMB step, BERT-{model}: share of the copy bandwidth", "wanted": f"{NVLAMB_SHARE:.0%}"}
        for share in shares:
            row |= {"measured": f"{share:.1%}", "reached": "yes" if share >= NVLAMB_SHARE else "no"}
        rows.append(row)
    return rows


def page(out: Path, stages: dict[str, Any]) -> str:
    """All results as Markdown."""
    lines = [f"# {stages['title']}: {stages['date']}, commit {stages['commit']}", "", stages["versions"]]
    lines += ["", "Made by `scripts/prove_gpu.sh` from the JSON beside this page.", "", "## Stages", ""]
    lines += table(stages["stages"], ("stage", "seconds", "state", "note"))
    lines += ["", "## Goals on an H200", "", *table(goals(out), tuple(goals(out)[0]))]
    optimizer = read(out / "optimizer.json").get("rows", [])
    if optimizer:
        bandwidth = optimizer[0]["copy_bandwidth"]
        lines += ["", "## Optimizer", "", f"{optimizer[0]['device']}; copies {bandwidth / 1e9:,.0f} GB/s.", ""]
        lines += table(optimizer, OPTIMIZER_COLUMNS)
    for name in STEPS:
        found = read(out / name / "step.json")
        if not found:
            continue
        first, last = found["rows"][0], found["rows"][-1]
        batch = found["options"]["batch"]
        measured, sheet = last["matrix_rate"] / 1e12, last["matrix_rate_data_sheet"]
        what = f"{last['device']}: {batch['global_batch_size']} samples a step, {batch['micro_batch_size']} at once; "
        what += f"matrix products {measured:,.3g} TFLOP/s measured, "
        what += "not in the table of data sheets" if sheet is None else f"{sheet / 1e12:,.4g} in the data sheet"
        lines += ["", f"## {name}: {first['model']} at {first['sequence_length']}", "", f"{what}.", ""]
        lines += table(found["rows"], STEP_COLUMNS)
        lines += [
            f"\n- failed: {variant}: {' '.join(error.split())[:300]}" for variant, error in found["failed"].items()
        ]
    for name in ("beside_trainer", "batch_64k", "resume", "kernel", "tests"):
        found = read(out / f"{name}.json")
        if found:
            rows = found["rows"] if name != "tests" else [row for row in found["rows"] if row["outcome"] != "passed"]
            lines += ["", f"## {name}", "", found.get("note", ""), "", *table(rows)]
    return "\n".join(lines) + "\n"


def versions() -> str:
    """Versions of the packages that matter, without importing them."""
    found = []
    for name in ("torch", "triton", "transformers", "numpy", "hydra-core"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def main() -> None:
    """Note the stage, and write the page."""
    parser = argument_parser(__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--title", help="of the page")
    parser.add_argument("--stage", help="the stage that has ended")
    parser.add_argument("--seconds", type=int)
    parser.add_argument("--state")
    given = parser.parse_args()
    path = given.out / "stages.json"
    stages = read(path) or {"stages": []}
    if given.stage:
        stages |= {"title": given.title, "date": time.strftime("%Y-%m-%d"), "commit": commit() or "unknown"}
        stages["versions"] = versions()
        note = read(given.out / f"{given.stage}.json").get("note", "")
        row = {"stage": given.stage, "seconds": given.seconds, "state": given.state, "note": note}
        stages["stages"] = [old for old in stages["stages"] if old["stage"] != given.stage] + [row]
        path.write_text(json.dumps(stages, indent=2) + "\n", encoding="utf-8")
    (given.out / "page.md").write_text(page(given.out, stages), encoding="utf-8")


if __name__ == "__main__":
    main()
