"""What fine-tuning keeps in ``out_dir``: the options that it belongs to, a result a seed, the summary of all.

``options.json`` says which options, data and weights the results are of; ``seed_N/result.json`` is the last file of a
seed that is written; ``results.json`` comes after the last seed. Each is whole or absent.
"""

import json
import re
import shutil
import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bert_pretrain.errors import ConfigError
from bert_pretrain.files.file_system import read_json, remove_tree, write_json
from bert_pretrain.finetune.options import FinetuneConfig
from bert_pretrain.options.stored_options import flat

Row = dict[str, Any]
OPTIONS = "options.json"
RESULT = "result.json"
RESULTS = "results.json"
_MAY_CHANGE = (
    "seeds",
    "out_dir",
    "overwrite",
    "device",
    "data",
    "training.micro_batch_size",
    "training.eval_batch_size",
    "training.checkpoint_minutes",
)
"""Options that do not change a seed's result, except for rounding. The data are compared by their content."""
_SUMMARY: dict[str, Callable[[list[float]], float]] = {
    "median": statistics.median,
    "deviation": lambda values: statistics.stdev(values) if len(values) > 1 else 0.0,
    "least": min,
    "greatest": max,
}
"""Rows of the summary over the seeds, by their keys in results.json."""


def seed_folder(config: FinetuneConfig, seed: int) -> Path:
    """The folder of one seed."""
    return Path(config.out_dir) / f"seed_{seed}"


def check_out_dir(config: FinetuneConfig) -> None:
    """Raise ``ConfigError`` if ``out_dir`` holds results of other options."""
    out_dir = Path(config.out_dir)
    if config.overwrite:
        return
    if (out_dir / OPTIONS).exists():
        _compare(_stored(out_dir).get("options", {}), compared_options(config), "", out_dir)
    elif (out_dir / RESULTS).exists():
        raise ConfigError(f"out_dir {out_dir} holds results; give another, or overwrite=true to replace them")


def claim_out_dir(config: FinetuneConfig, contents: dict[str, str]) -> list[Row]:
    """The results of the seeds that are finished; with ``overwrite``, earlier results are removed instead.

    ``contents``: hashes of the data and the pretrained weights by name. Raises ``ConfigError`` if they have changed.
    """
    out_dir = Path(config.out_dir)
    if config.overwrite:
        for path in out_dir.iterdir():
            if re.fullmatch(r"seed_\d+", path.name) or path.name in (OPTIONS, RESULTS):
                remove_tree(path)
    if not (out_dir / OPTIONS).exists():
        write_json(out_dir / OPTIONS, {"options": compared_options(config), "contents": contents})
        return []
    _compare(_stored(out_dir).get("contents", {}), contents, "the content of ", out_dir)
    finished = [path for seed in config.seeds if (path := seed_folder(config, seed) / RESULT).exists()]
    return [read_json(path, "restore it, or move it away to run this seed again") for path in finished]


def compared_options(config: FinetuneConfig) -> dict[str, Any]:
    """The options that results depend on, by their full names, as JSON gives them back."""
    options = flat(json.loads(json.dumps(asdict(config))))
    kept = (name for name in options if not any(f"{name}.".startswith(f"{free}.") for free in _MAY_CHANGE))
    return {name: options[name] for name in kept}


def _stored(out_dir: Path) -> dict[str, Any]:
    return read_json(out_dir / OPTIONS, "restore it, or give overwrite=true to start anew")


def _compare(before: dict[str, Any], now: dict[str, Any], what: str, out_dir: Path) -> None:
    names = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    if names:
        shown = [f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in names[:4]]
        raise ConfigError(
            f"out_dir {out_dir} holds results of other options: "
            + (f"{what}{', '.join(names)} has changed" if what else ", ".join(shown))
            + "; give another out_dir, or overwrite=true to replace them"
        )


def finish_seed(config: FinetuneConfig, row: Row) -> None:
    """Write a seed's result, and remove its checkpoints."""
    folder = seed_folder(config, row["seed"])
    write_json(folder / RESULT, row)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def summarize(rows: list[Row]) -> dict[str, Row]:
    """Median, deviation, least and greatest of each column."""
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "seed"}
    return {name: {column: reduce(values) for column, values in columns.items()} for name, reduce in _SUMMARY.items()}


def table(rows: list[Row]) -> str:
    """Rows as text, one column per key, and a head."""
    widths = {name: max(9, len(name)) for name in rows[0]}
    lines = ["  ".join(f"{name:>{width}}" for name, width in widths.items())]
    for row in rows:
        cells = [f"{row[n]:>{w}.2f}" if isinstance(row[n], float) else f"{row[n]:>{w}}" for n, w in widths.items()]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def write_results(config: FinetuneConfig, rows: list[Row], summary: dict[str, Row]) -> None:
    """Write ``results.json``: the scores of each seed, their median and spread, all options."""
    result = {
        "task": config.task.name,
        "model": config.model_dir,
        "from_scratch": config.from_scratch,
        "runs": rows,
        **summary,
        "options": asdict(config),
    }
    write_json(Path(config.out_dir) / RESULTS, result)
