"""What may be compared between runs, and in what they differ."""

from pathlib import Path
from typing import Any

from bert_pretrain.report.stored_run import Run
from bert_pretrain.same_run import flat_options

_SPLITS = {"heldout": "evaluated", "train": "trained"}


def shard_faults(runs: dict[str, Run]) -> dict[str, list[str]]:
    """By split, ``heldout`` before ``train``: the runs that do not share the first one's shards; empty if all do.

    Only runs with evaluations count for ``heldout``. Where a fingerprint is not known, the same directory counts as the
    same shards.
    """
    found: dict[str, list[str]] = {}
    for split in _SPLITS:
        names = [name for name, run in runs.items() if run.heldout or split == "train"]
        others = [name for name in names[1:] if not _same(runs[names[0]], runs[name], split)]
        if others:
            found[split] = [names[0], *others]
    return found


def warning(runs: dict[str, Run]) -> str:
    """What may not be compared, in one sentence; empty if all may."""
    faults = shard_faults(runs)
    if not faults:
        return ""
    names = dict.fromkeys(name for found in faults.values() for name in found)
    *others, last = names
    what = "losses" if "heldout" in faults else "training losses"
    how = " and ".join(_SPLITS[split] for split in reversed(_SPLITS) if split in faults)
    return f"{', '.join(others)} and {last} were {how} on different shards: their {what} may not be compared"


def _same(one: Run, other: Run, split: str) -> bool:
    prints = one.shards(split)[1], other.shards(split)[1]
    if None in prints:
        first, second = (Path(run.options["data"]["dir"]).absolute() for run in (one, other))
        return first == second
    return prints[0] == prints[1]


def option_rows(runs: dict[str, Run]) -> list[list[str]]:
    """Rows of an option's name and its value in each run, of those options that differ."""
    flat = [flat_options(run.options) for run in runs.values()]
    names = dict.fromkeys(name for options in flat for name in options)
    rows = [[name, *(_as_yaml(options.get(name)) for options in flat)] for name in names if name != "run_dir"]
    return [row for row in rows if len(set(row[1:])) > 1]


def _as_yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
