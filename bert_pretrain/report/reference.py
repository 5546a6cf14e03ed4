"""Reference curves: is a run on track?

``reference_curves/NAME.json`` holds the losses of one run with several seeds, as ``scripts/reference_curves.py`` wrote
it. A run is compared with the reference of its options and of its shards, or of its corpus if the shards differ, as
they do with other versions of the packages that the demo reads; if there is none, the reason is said. At each step the
band is the 95 % prediction interval for one more seed: mean +- t(n - 1) s sqrt(1 + 1/n).
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bert_pretrain.same_run import differing_options, flat_options
from bert_pretrain.training.metrics import Row

if TYPE_CHECKING:
    from bert_pretrain.report.plots import Band

FOLDER = Path(__file__).parent / "reference_curves"
HELDOUT, TRAINING = "eval_mlm_loss", "mlm_loss"
OTHER_SHARDS = "the reference's shards are others of this corpus: of other versions, or prepared in another way"


@dataclass(frozen=True)
class Reference:
    """The losses of one run with several seeds."""

    name: str
    command: str
    """The command of the first seed."""
    seeds: list[int]
    data_fingerprint: str
    options: dict[str, Any]
    """The ``config.yaml`` of the first seed."""
    curves: dict[str, dict[str, list[float]]]
    """By key of the metrics: ``steps``, ``mean``, and with two seeds or more ``low`` and ``high``."""
    about: dict[str, Any]
    """Date, device, commits of the program, and the versions of the corpus."""

    def band(self) -> "Band | None":
        """Of the held-out loss, for the figure; None with a single seed."""
        from bert_pretrain.report.plots import Band  # loads matplotlib, which takes a second

        curve = self.curves[HELDOUT]
        if "low" not in curve:
            return None
        return Band(curve["steps"], curve["low"], curve["high"], f"reference {self.name}, {len(self.seeds)} seeds")


def references() -> list[Reference]:
    """All references of this version, by name."""
    return [Reference(path.stem, **json.loads(path.read_text("utf-8"))) for path in sorted(FOLDER.glob("*.json"))]


def find_reference(
    stored: dict[str, Any], fingerprint: str | None, corpus: set[str], known: list[Reference] | None = None
) -> tuple[Reference | None, str]:
    """The reference of a run, and why there is none, or that its shards are others of the same corpus.

    ``stored``: the run's ``config.yaml``; ``fingerprint``: of its training shards, None if not known; ``corpus``: the
    names of what they were made of, empty if not known; ``known``: the references to choose from, None:
    ``references()``. The seed may differ, and what may change on resume. Of ``init_from`` only whether it is set is
    compared: the model's shape is among the options, its weights are not.
    """
    options = flat_options(stored)
    same_corpus, nearest, fewest = None, "there is none", math.inf
    for reference in references() if known is None else known:
        theirs = flat_options(reference.options)
        differing = [name for name in differing_options(options, theirs) if name != "seed"]
        if (options.get("init_from") is None) != (theirs.get("init_from") is None):
            differing.append("init_from")
        if not differing and fingerprint == reference.data_fingerprint:
            return reference, ""
        if not differing and corpus and corpus == set(reference.about.get("corpus", ())):
            same_corpus = reference
        if len(differing) < fewest:
            fewest = len(differing)
            nearest = _reason(reference.name, differing, options, theirs, fingerprint)
    return (same_corpus, OTHER_SHARDS) if same_corpus else (None, nearest)


def _reason(name: str, differing: list[str], options: Row, theirs: Row, fingerprint: str | None) -> str:
    if differing:
        pairs = [f"{key} is {options.get(key)} and there {theirs.get(key)}" for key in differing[:2]]
        more = f" and {len(differing) - 2} more" if len(differing) > 2 else ""
        return f"the nearest, {name}, has other options: {', '.join(pairs)}{more}"
    if fingerprint is None:
        return f"that of {name} has the same options, but the run's shards are not known"
    return f"{name} has the same options, but was trained on another corpus"


def verdict(reference: Reference, rows: list[Row]) -> str:
    """Whether a run with the metrics ``rows`` is on track, by its last held-out loss after step 0: one sentence.

    Between two steps of the reference its ends are interpolated.
    """
    last = reference.curves[HELDOUT]["steps"][-1]
    found = [(row["step"], row[HELDOUT]) for row in rows if HELDOUT in row and 0 < row["step"] <= last]
    return _sentence(reference, *found[-1]) if found else "not known yet: no held-out loss after step 0"


def on_track(stored: dict[str, Any], fingerprint: str | None, corpus: set[str], rows: list[Row]) -> str:
    """``verdict`` by the reference of a run, or why it has none."""
    reference, note = find_reference(stored, fingerprint, corpus)
    if reference is None:
        return f"none: {note}"
    return f"{verdict(reference, rows)}; {note}" if note else verdict(reference, rows)


def _sentence(reference: Reference, step: int, loss: float) -> str:
    curve, seeds = reference.curves[HELDOUT], len(reference.seeds)
    at = {name: float(np.interp(step, curve["steps"], curve[name])) for name in curve if name != "steps"}
    where = f"held-out MLM loss {loss:.3f} at step {step:,}"
    if not math.isfinite(loss):
        return f"not on track: {where}"
    if "low" not in at:
        return f"{where}: {loss - at['mean']:+.3f} nats to the reference {reference.name} (one seed: no band)"
    band = f"the band of {seeds} seeds ({at['low']:.3f} to {at['high']:.3f})"
    if loss > at["high"]:
        return f"not on track: {where} is above {band} by {loss - at['high']:.3f} nats"
    if loss < at["low"]:
        return f"better than the reference: {where} is below {band} by {at['low'] - loss:.3f} nats"
    return f"on track: {where} is within {band}"
