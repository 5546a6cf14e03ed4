"""The page of one run, and that of several side by side."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from bert_pretrain.html_page import (
    Cell,
    Html,
    Number,
    drawn,
    element,
    figure,
    figures,
    folded,
    large_figure,
    page,
    paragraph,
    table,
    tiles,
)
from bert_pretrain.options.stored_options import read_text
from bert_pretrain.report.comparison import option_rows, shard_faults, warning
from bert_pretrain.report.plots import LAYER_TITLES, METRICS, Curves, layer_figures, metric_figures
from bert_pretrain.report.reference import find_reference
from bert_pretrain.report.run_facts import facts, headline, moment
from bert_pretrain.report.stored_run import Run
from bert_pretrain.training.metrics import duration, perplexity

_OF_DATA = ("loss", "accuracy", "next_sentence")
"""The figures whose values depend on the shards."""


def run_page(run: Run, drawings: dict[str, Figure], script: str = "") -> str:
    """The page of one run; ``drawings``: its figures by name, from ``draw``; ``script``: see ``html_page.page``."""
    sections = {
        "Summary": [table("What, where, when, how far", ["what", "this run"], facts(run))],
        "Curves": [figures(*(_curve(name, chart, [run]) for name, chart in drawings.items() if name in METRICS))],
        "Evaluations": _evaluations({run.name: run}),
        "Layers": _layers(drawings, run),
        "Sessions": _sessions(run),
        "Configuration": [_configuration(run, "config.yaml")],
    }
    if not run.training and not run.heldout:
        sections["Curves"] = [paragraph("No step is logged yet.")]
    return page(f"Run {run.name}", sections, [tiles(headline(run))], script=script)


def comparison_page(runs: dict[str, Run], script: str = "") -> str:
    """The page of several runs, by the name that each has on it."""
    fault = warning(runs)
    by_run = {name: dict(facts(run)) for name, run in runs.items()}
    labels = dict.fromkeys(label for known in by_run.values() for label in known)
    rows: list[list[Cell]] = [[label, *(known.get(label, "") for known in by_run.values())] for label in labels]
    differing = option_rows(runs)
    sections = {
        "Results": [_results(runs)],
        "Curves": [figures(*_comparing(runs))],
        "Options that differ": [
            table("Options of which at least two runs have different values", ["option", *runs], differing)
        ]
        if differing
        else [paragraph("All options are the same.")],
        "Summary": [table("What, where, when, how far", ["what", *runs], rows)],
        "Evaluations": _evaluations(runs),
        "Configuration": [_configuration(run, name) for name, run in runs.items()],
    }
    lead = [paragraph(f"{fault}.", kind="warning")] if fault else []
    return page(f"Runs {', '.join(runs)}", sections, lead, script=script)


def draw(run: Run) -> dict[str, Figure]:
    """All figures of a run by name, in the order of interest; the loss with the band of its reference."""
    reference, _ = find_reference(run.options, run.shards("train")[1], run.corpus)
    band = reference.band() if reference else None
    return {**metric_figures([Curves(run.name, run.rows)], band), **layer_figures(run.rows)}


def _comparing(runs: dict[str, Run]) -> list[Html]:
    """The curves of all runs in one figure for each metric.

    Losses on other shards stand in a figure each; if only the training shards differ, the held-out ones are shown.
    """
    batches = {name: int(run.options["batch"]["global_batch_size"]) for name, run in runs.items()}
    by_samples = len(set(batches.values())) > 1
    curves = [Curves(name, run.rows, batches[name] if by_samples else 1) for name, run in runs.items()]
    faults, found = shard_faults(runs), list[Html]()
    apart = "heldout" in faults or ("train" in faults and not any(run.heldout for run in runs.values()))
    for name, chart in metric_figures(curves).items():
        if name in _OF_DATA and apart:
            for one, run in zip(curves, runs.values(), strict=True):
                alone = metric_figures([one])
                found += [_curve(name, alone[name], [run], f" of {one.name}")] if name in alone else []
        elif name in _OF_DATA and "train" in faults:
            heldout = [Curves(one.name, [row for row in one.rows if "eval_loss" in row], one.scale) for one in curves]
            known = metric_figures(heldout)
            found += [_curve(name, known[name], list(runs.values()))] if name in known else []
        else:
            found.append(_curve(name, chart, list(runs.values())))
    return found


def _curve(name: str, chart: Figure, runs: Sequence[Run], of: str = "") -> Html:
    label, key = METRICS[name]
    ends = []
    for run in runs:
        for kind, rows in ((key, run.training), (f"eval_{key}", run.heldout)):
            values = [row[kind] for row in rows if kind in row]
            if values:
                ends.append(f"{run.name}, {kind}: first {values[0]:.4g}, last {values[-1]:.4g}")
    return figure(drawn(chart), f"{label} over the run. {'; '.join(ends)}", f"{label[0].upper()}{label[1:]}{of}")


def _layers(drawings: dict[str, Figure], run: Run) -> list[Html]:
    """The first map, and the others folded."""
    maps = {name: _layer_map(name, chart, run) for name, chart in drawings.items() if name not in METRICS}
    return [made if i == 0 else folded(_title(name), made) for i, (name, made) in enumerate(maps.items())]


def _title(name: str) -> str:
    title = LAYER_TITLES[name.removeprefix("layers_")]
    return f"{title[0].upper()}{title[1:]} by layer"


def _layer_map(name: str, chart: Figure, run: Run) -> Html:
    title = _title(name)
    steps = [row["step"] for row in run.rows if name.removeprefix("layers_") in row]
    alt = f"Heat map: {title}, from step {steps[0]:,} to step {steps[-1]:,}"
    return large_figure(drawn(chart), alt, title, name, "Layers")


def _results(runs: dict[str, Run]) -> Html:
    head = ["run", "state", "held-out MLM loss", "held-out MLM accuracy", "at step", "steps", "samples",
            "tokens per second", "wall time"]  # fmt: skip
    rows: list[list[Cell]] = []
    for name, run in runs.items():
        last, step = (run.heldout or [{}])[-1], (run.training or [{}])[-1]
        seconds, rate = run.seconds(), run.tokens_per_second()
        rows.append([
            name, run.state, _number(last.get("eval_mlm_loss")), _number(last.get("eval_mlm_accuracy")),
            last.get("step"), run.done, step.get("samples_seen"), _number(rate, ",.0f"),
            None if seconds is None else Number(seconds, duration(seconds)),
        ])  # fmt: skip
    return table("Where each run stands", head, rows, is_sortable=True)


def _number(value: float | None, form: str = ".4f") -> Cell:
    return None if value is None else Number(value, format(value, form))


def _evaluations(runs: dict[str, Run]) -> list[Html]:
    """Every evaluation with its numbers."""
    head = ["step", "samples", "MLM loss", "perplexity", "MLM accuracy"]
    next_sentence = any("eval_nsp_accuracy" in row for run in runs.values() for row in run.heldout)
    rows: list[list[Cell]] = []
    for name, run in runs.items():
        for row in run.heldout:
            loss = row["eval_mlm_loss"]
            cells = [row["step"], row["step"] * run.options["batch"]["global_batch_size"], _number(loss),
                     _number(perplexity(loss), ",.1f"), _number(row["eval_mlm_accuracy"])]  # fmt: skip
            if next_sentence:
                cells.append(_number(row.get("eval_nsp_accuracy")))
            rows.append([name, *cells] if len(runs) > 1 else cells)
    head = (["run"] if len(runs) > 1 else []) + head + (["next-sentence accuracy"] if next_sentence else [])
    return [table("On the held-out shards", head, rows, is_sortable=True)] if rows else []


def _sessions(run: Run) -> list[Html]:
    """Each start of the run's process."""
    rows: list[list[Cell]] = []
    for session in run.sessions:
        is_last = session is run.sessions[-1]
        how = session["how"] or (run.state if is_last else "killed")
        ended = session["ended"] or (None if run.is_running else run.until)
        rows.append([
            Number(session["time"], moment(session["time"])), moment(ended) if ended else "", session["step"], how,
            session["host"], f"{session['ranks']} x {session['device']}", session["version"],
        ])  # fmt: skip
    head = ["started", "ended", "from step", "how it ended", "host", "device", "program"]
    return [table("Each start of the run", head, rows)] if rows else []


def _configuration(run: Run, summary: str) -> Html:
    return folded(summary, element("pre", read_text(run.directory / "config.yaml")))
