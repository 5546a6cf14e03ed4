"""A report of a run: one HTML page with its main figures, its plots and its configuration."""

import html
from dataclasses import dataclass
from pathlib import Path

from bert_pretrain.config_loading import entry_point
from bert_pretrain.data.shard_directory import read_manifest
from bert_pretrain.errors import ConfigError
from bert_pretrain.file_system import require_writable
from bert_pretrain.report.plots import draw_run
from bert_pretrain.stored_options import read_options
from bert_pretrain.training.metrics import read_rows

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse }} td {{ padding: .15rem 1.5rem .15rem 0; font-variant-numeric: tabular-nums }}
.plots {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1rem }}
.plots img {{ width: 100% }} pre {{ background: #f5f5f5; padding: 1rem; overflow-x: auto; font-size: .85rem }}
</style></head><body><h1>{title}</h1><table>{facts}</table><div class="plots">{plots}</div>
<h2>Configuration</h2><pre>{config}</pre></body></html>
"""


@dataclass
class ReportConfig:
    """Options of ``bert-pretrain report``."""

    run_dir: str
    """Directory of the run."""


@entry_point("report", ReportConfig)
def main(config: ReportConfig) -> None:
    """Write report.html for a run: its main figures, plots and configuration. Print the figures.

        bert-pretrain report run_dir=runs/demo

    The page and the plots are written into run_dir. It also works while the run goes on.
    """
    run_dir = Path(config.run_dir)
    if not (run_dir / "metrics.jsonl").exists() or not (run_dir / "config.yaml").exists():
        raise ConfigError(f"run_dir is {config.run_dir!r}, which holds no run (metrics.jsonl, config.yaml)")
    require_writable(run_dir, "run_dir", "copy the run to a writable directory")
    rows = facts(run_dir)
    paths = {"model": run_dir / "model", "plots": run_dir / "plots", "report": write_report(run_dir)}
    rows += [(name, str(path)) for name, path in paths.items() if path.exists()]
    for name, value in [*rows, ("metrics", str(run_dir / "metrics.jsonl"))]:
        print(f"  {name:<34}{value}")


def write_report(run_dir: Path) -> Path:
    """Draw the plots and write ``report.html``; return its path."""
    plots = sorted(draw_run(run_dir).glob("*.png"))
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in facts(run_dir)
    )
    images = "".join(f'<img src="plots/{path.name}" alt="{path.stem}">' for path in plots)
    config = html.escape((run_dir / "config.yaml").read_text(encoding="utf-8"))
    page = run_dir / "report.html"
    page.write_text(_PAGE.format(title=html.escape(run_dir.name), facts=rows, plots=images, config=config), "utf-8")
    return page


def facts(run_dir: Path) -> list[tuple[str, str]]:
    """The main figures of a run, each with its name."""
    rows = read_rows(run_dir / "metrics.jsonl")
    training = [row for row in rows if "mlm_loss" in row]
    heldout = [row for row in rows if "eval_mlm_loss" in row]
    found = []
    if training:
        last = training[-1]
        # The first row includes the start-up of threads and kernels.
        rates = sorted(row["tokens_per_second"] for row in training[1:] or training)
        found += [
            ("steps", f"{last['step']:,}, {last['skipped_steps']} of them skipped"),
            ("samples", f"{last['samples_seen']:,}"),
            ("real tokens per second, median", f"{rates[len(rates) // 2]:,.0f}"),
            ("MLM loss, last batch", f"{last['mlm_loss']:.4f} nats"),
        ]
    if heldout:
        first, last = heldout[0], heldout[-1]
        if first["step"] == 0:
            found.append(("held-out MLM loss at step 0", f"{first['eval_mlm_loss']:.4f} nats"))
        found += [
            ("held-out MLM loss", f"{last['eval_mlm_loss']:.4f} nats"),
            ("held-out MLM accuracy", f"{last['eval_mlm_accuracy']:.4f}"),
        ]
        if "eval_nsp_accuracy" in last:
            found.append(("held-out next-sentence accuracy", f"{last['eval_nsp_accuracy']:.4f}"))
        directory = Path(read_options(run_dir / "config.yaml")["data"]["dir"])
        manifest = read_manifest(directory) if directory.is_dir() else None
        if manifest is not None and "unigram_entropy" in manifest:
            entropy = float(manifest["unigram_entropy"])
            found.append(("unigram entropy of the corpus", f"{entropy:.4f} nats"))
            found.append(("held-out MLM loss below that by", f"{entropy - last['eval_mlm_loss']:.4f} nats"))
    return found
