"""``bert-pretrain report``: a run, or several side by side, as one HTML file that needs no other."""

import sys
from dataclasses import dataclass
from pathlib import Path

from bert_pretrain.errors import ConfigError, require
from bert_pretrain.files.file_system import replace_file, require_writable
from bert_pretrain.html_page import is_page
from bert_pretrain.options.entry_point import entry_point, exit_on_config_error
from bert_pretrain.report.comparison import warning
from bert_pretrain.report.run_facts import by_name, facts, read_run
from bert_pretrain.report.stored_run import Run
from bert_pretrain.training.sessions import METRICS

PAGE, COMPARISON = "report.html", "comparison.html"


@dataclass
class ReportConfig:
    """Options of ``bert-pretrain report``."""

    run_dir: str | None
    """Directory of the run."""
    runs: list[str]
    """Directories of several runs, to show them side by side, instead of run_dir."""
    out: str | None
    """File to write. null: report.html in run_dir; for several runs comparison.html here."""
    live: bool
    """Serve the page instead of writing it; it reloads by itself while the run goes on. Also as --live."""
    host: str
    """With live: the address to listen at. Only this machine reaches 127.0.0.1; 0.0.0.0 lets everyone in who reaches
    this machine."""
    port: int
    """With live: the port to listen at; 0 takes a free one."""

    def __post_init__(self) -> None:
        found = "neither" if self.run_dir is None else "both"
        if (self.run_dir is None) == (not self.runs):
            raise ConfigError(f"run_dir and runs: {found} given; give run_dir=DIR, or runs=[DIR,DIR] to compare runs")
        require(0 <= self.port < 65_536, "port", self.port, "0 to 65535")
        if self.live and self.out is not None:
            raise ConfigError(f"out is {self.out!r}, but live=true writes no file; give one of the two")

    @property
    def directories(self) -> list[Path]:
        """Of all runs, each once."""
        return [Path(name).expanduser() for name in dict.fromkeys(self.runs or [str(self.run_dir)])]


@entry_point("report", ReportConfig)
def report(config: ReportConfig) -> None:
    """Write a page about a run: what, where, when, how far, figures and configuration. Print its main figures.

        bert-pretrain report run_dir=runs/demo
        bert-pretrain report runs=[runs/a,runs/b] out=a_and_b.html
        bert-pretrain report run_dir=runs/demo --live

    The page is one file that can be mailed. It also works while the run goes on: --live serves the page, on this
    machine only, and reloads it by itself until Ctrl-C.
    """
    runs = [read_run(path, "runs" if config.runs else "run_dir") for path in config.directories]
    if config.live:
        from bert_pretrain.report.live import serve

        serve(config.directories, config.host, config.port)
    elif len(runs) > 1:
        _compare(_checked(config.out, runs), by_name(runs))
    else:
        path = _write(runs[0], _checked(config.out, runs))
        directory = runs[0].directory
        paths = {"model": directory / "model", "plots": directory / "plots", "report": path}
        found = [(name, str(path)) for name, path in paths.items() if path.exists()]
        for name, value in [*facts(runs[0]), *found, ("metrics", str(directory / METRICS))]:
            print(f"  {name:<34}{value}")


@exit_on_config_error
def main(words: list[str] | None = None) -> None:
    """``report``, which also takes ``--live``."""
    given = sys.argv[1:] if words is None else words
    report(["live=true" if word == "--live" else word for word in given])


main.command = report.command  # type: ignore[attr-defined]


def _checked(out: str | None, runs: list[Run]) -> Path:
    """The file to write. Raises ``ConfigError`` if it cannot be, or if it is there and no page of this program."""
    default = runs[0].directory / PAGE if len(runs) == 1 else Path(COMPARISON)
    path = Path(out).expanduser() if out else default
    if path.is_dir():
        raise ConfigError(f"out is {str(path)!r}, a directory; give the name of a file")
    if path.exists() and (out or len(runs) > 1) and not is_page(path):
        raise ConfigError(f"out {path} exists and is no page of this program; give another name")
    option = "run_dir" if out is None and len(runs) == 1 else "the directory of out,"
    require_writable(path.parent, option, "give out=FILE in a directory that can be written")
    return path


def _compare(path: Path, runs: dict[str, Run]) -> None:
    from bert_pretrain.report.page import comparison_page  # loads matplotlib, which takes a second

    replace_file(path, comparison_page(runs).encode())
    if fault := warning(runs):
        print(fault)
    for name, run in runs.items():
        loss = f"{run.heldout[-1]['eval_mlm_loss']:.4f}" if run.heldout else "-"
        print(f"  {name:<34}held-out MLM loss {loss:<10}{run.done:,} of {run.planned:,} steps, {run.state}")
    print(f"  {'report':<34}{path}")


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` and the PNG files in ``plots`` for the run in ``run_dir``; return the path of the page."""
    return _write(read_run(run_dir), run_dir / PAGE)


def _write(run: Run, path: Path) -> Path:
    from bert_pretrain.report.page import draw, run_page
    from bert_pretrain.report.plots import save

    drawings = draw(run)
    if path == run.directory / PAGE:
        save(drawings, run.directory / "plots")
    replace_file(path, run_page(run, drawings).encode())
    return path
