"""Commands in processes forked from one that has imported torch and this program.

A new interpreter needs five seconds of processor time for its imports, a forked process a few milliseconds; apart from
that it is the same: its own ``sys.argv``, environment, working directory, output and exit status. What depends on a new
interpreter or on torchrun itself is tested with ``conftest.run_command``.

The plots of a run are empty files here, since drawing takes longer than most runs. ``report/test_plots.py`` and
``test_end_to_end.py`` look at real ones.
"""

import atexit
import contextlib
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "bert_pretrain.bench.optimizer",
        "bert_pretrain.bench.step",
        "bert_pretrain.run",
        "bert_pretrain.doctor.checks",
        "bert_pretrain.finetune.run",
        "bert_pretrain.hub.export",
        "bert_pretrain.hub.fill_mask",
        "bert_pretrain.study.run",
    ]
)
HANGS = 600
"""Seconds after which a process counts as hung; many times what a slow machine needs."""
_GRACE_SECONDS = 30
"""As torchrun: so long after SIGTERM the ranks that are left get SIGKILL."""


class Forked:
    """``python -m module words`` in one forked process, or in ``ranks`` of them with torchrun's environment."""

    def __init__(
        self, module: str, *words: str, ranks: int = 0, cwd: Path = ROOT, variables: dict[str, str] | None = None
    ) -> None:
        """``variables`` are added to the environment."""
        self._folder = tempfile.TemporaryDirectory(prefix="forked.")
        for descriptor in (1, 2):
            (Path(self._folder.name) / str(descriptor)).touch()
        self.args, self.processes = [module, *words], []
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        for rank in range(max(1, ranks)):
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
            added = {**(variables or {}), **(place if ranks else {})}
            added |= {name: str(number) for name, number in numbers.items() if ranks}
            process = _CONTEXT.Process(target=_run, args=(self.args, cwd, added, self._folder.name))
            process.start()
            self.processes.append(process)
        _running.append(self)

    @property
    def stdout(self) -> str:
        """What all ranks have printed so far."""
        return (Path(self._folder.name) / "1").read_text()

    @property
    def stderr(self) -> str:
        return (Path(self._folder.name) / "2").read_text()

    @property
    def statuses(self) -> list[int | None]:
        """Exit status of each rank, None where it runs."""
        return [process.exitcode for process in self.processes]

    def is_running(self) -> bool:
        return None in self.statuses

    def signal(self, rank: int, number: int) -> None:
        """Send a signal to a rank, if it still runs."""
        if self.processes[rank].exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.processes[rank].pid or 0, number)

    def kill(self) -> None:
        for process in self.processes:
            if process.exitcode is None:
                process.kill()
                process.join()

    def wait(self, timeout: float = HANGS, terminate: bool = True) -> subprocess.CompletedProcess:
        """Wait for all ranks. The status is that of the first rank that failed.

        ``terminate``: as under torchrun, the other ranks then get SIGTERM.
        """
        end, failed = time.monotonic() + timeout, 0
        while self.is_running():
            if terminate and not failed and (failed := self._failed()):
                end = min(end, time.monotonic() + _GRACE_SECONDS)
                for rank in range(len(self.processes)):
                    self.signal(rank, signal.SIGTERM)
            if time.monotonic() > end:
                self.kill()
                if not failed:
                    raise subprocess.TimeoutExpired(self.args, timeout, self.stdout, self.stderr)
            time.sleep(0.01)
        return subprocess.CompletedProcess(self.args, failed or self._failed(), self.stdout, self.stderr)

    def _failed(self) -> int:
        return next((status for status in self.statuses if status), 0)


def two_nodes(
    folders: tuple[Path, Path], module: str, *words: str, last: tuple[str, ...] = (), python_path: str = ""
) -> tuple[Forked, Forked]:
    """One rank on each of two nodes, each in a folder of its own.

    ``last``: one more word for each; ``python_path``: a folder that comes first on the path of the second.
    """
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    place |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    first = Forked(module, *words, *last[:1], cwd=folders[0], variables={**place, "RANK": "0"})
    path = {"PYTHONPATH": python_path} if python_path else {}
    return first, Forked(module, *words, *last[1:], cwd=folders[1], variables={**place, **path, "RANK": "1"})


_running: list[Forked] = []


@atexit.register  # multiprocessing would wait for them
def _kill_all() -> None:
    for forked in _running:
        forked.kill()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def draw_no_report() -> None:
    """From here on the reports of runs have empty figures: to draw them takes longer than most runs."""
    from bert_pretrain.report import page, plots

    def save_nothing(figures: dict[str, object], folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        for name in figures:
            (folder / f"{name}.png").touch()

    page.drawn = lambda _: page.Html('<svg viewBox="0 0 1 1"></svg>')
    plots.save = save_nothing


def _run(args: list[str], cwd: Path, variables: dict[str, str], folder: str) -> None:
    for descriptor in (1, 2):
        os.dup2(os.open(f"{folder}/{descriptor}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores it
    os.environ.update(variables)
    sys.path[:0] = [path for path in variables.get("PYTHONPATH", "").split(os.pathsep) if path]
    os.chdir(cwd)
    sys.argv = args
    if args[0] != "bert_pretrain.report":
        draw_no_report()
    for name in (args[0], f"{args[0]}.__main__"):
        if not hasattr(sys.modules.get(name), "__path__"):
            sys.modules.pop(name, None)  # runpy warns of a module that is already imported
    runpy.run_module(args[0], run_name="__main__", alter_sys=True)
