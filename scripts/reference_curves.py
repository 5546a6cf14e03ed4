"""Writes a reference curve of the report: the losses of one run with several seeds.

    python scripts/reference_curves.py demo WORK_DIR 1 2 3 -- recipe=demo data.dir=data/demo

Runs ``pretrain OPTIONS`` once per seed in WORK_DIR/seed_N, one after the other. Finished runs are not repeated, and a
stopped one goes on, with the same command. Then it writes bert_pretrain/report/reference_curves/NAME.json from the
seeds that are finished. Commit that file.
"""

import json
import math
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import repository_root  # noqa: F401  makes bert_pretrain importable
from results_file import argument_parser, without_folders
from scipy.stats import t

from bert_pretrain.report.reference import FOLDER, HELDOUT, TRAINING
from bert_pretrain.report.run_facts import read_run
from bert_pretrain.report.stored_run import Run
from bert_pretrain.training.sessions import METRICS

CONFIDENCE = 0.95
_PLACES = ("dir", "tokenizer", "cache_dir")  # on the machine that runs it


def curve(runs: list[dict[int, float]]) -> dict[str, list[float]]:
    """Mean at the steps that all runs have, and the prediction interval for one more run (none with a single run)."""
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    values = [[run[step] for run in runs] for step in steps]
    means = [statistics.fmean(at) for at in values]
    found: dict[str, list[float]] = {"steps": list(steps), "mean": [round(mean, 4) for mean in means]}
    if len(runs) > 1:
        factor = float(t.ppf((1 + CONFIDENCE) / 2, len(runs) - 1)) * math.sqrt(1 + 1 / len(runs))
        widths = [factor * statistics.stdev(at) for at in values]
        found["low"] = [round(mean - width, 4) for mean, width in zip(means, widths, strict=True)]
        found["high"] = [round(mean + width, 4) for mean, width in zip(means, widths, strict=True)]
    return found


def losses(run: Run, key: str) -> dict[int, float]:
    """The losses of a run by step."""
    return {row["step"]: row[key] for row in run.rows if key in row}


def is_finished(run_dir: Path) -> bool:
    """Whether a run has evaluated its last step."""
    if not (run_dir / "config.yaml").exists() or not (run_dir / METRICS).exists():
        return False
    run = read_run(run_dir)
    return run.planned in losses(run, HELDOUT)


def reference(runs: dict[int, Run], command: str, device: str) -> dict[str, Any]:
    """What the report reads, from finished runs by seed. Raises ``ValueError`` if their data differ."""
    fingerprints = {run.shards("train")[1] for run in runs.values()}
    if len(fingerprints) > 1 or None in fingerprints:
        raise ValueError(
            f"the shards of {', '.join(str(run.directory) for run in runs.values())} differ, or are unknown"
        )
    first = next(iter(runs.values()))
    options = {name: value for name, value in first.options.items() if name != "run_dir"}
    options["data"] = {name: value for name, value in options["data"].items() if name not in _PLACES}
    if options["init_from"]:
        options["init_from"] = Path(options["init_from"]).name
    versions = dict.fromkeys(str(session["version"]) for run in runs.values() for session in run.sessions)
    return {
        "command": command,
        "seeds": list(runs),
        "data_fingerprint": fingerprints.pop(),
        "about": {
            "date": time.strftime("%Y-%m-%d"),
            "device": device,
            "program": list(versions),
            "corpus": {Path(source["name"]).name: source.get("version", "") for source in first.manifest["sources"]},
        },
        "curves": {key: curve([losses(run, key) for run in runs.values()]) for key in (HELDOUT, TRAINING)},
        "options": options,
    }


def main() -> None:
    """Run what is missing, then write the reference."""
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    parser = argument_parser(__doc__)
    parser.add_argument("name", help="the file's name")
    parser.add_argument("work_dir", type=Path, help="the directory of the runs")
    parser.add_argument("seeds", metavar="SEED", type=int, nargs="+")
    parser.add_argument("--device", default="CPU", help="the device that they ran on, in words")
    given, options = parser.parse_args(words[:cut]), words[cut + 1 :]
    runs = {seed: given.work_dir / f"seed_{seed}" for seed in given.seeds}
    for seed, run_dir in runs.items():
        if not is_finished(run_dir):
            command = [sys.executable, "-m", "bert_pretrain.cli", "pretrain", *options]
            subprocess.run([*command, f"seed={seed}", f"run_dir={run_dir}"], check=True)
    shown = shlex.join(["bert-pretrain", "pretrain", *map(without_folders, options), f"seed={given.seeds[0]}"])
    FOLDER.mkdir(exist_ok=True)
    found = reference({seed: read_run(run_dir) for seed, run_dir in runs.items()}, shown, given.device)
    path = FOLDER / f"{given.name}.json"
    path.write_text(json.dumps(found) + "\n", encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
