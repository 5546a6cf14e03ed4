"""A run on wandb. No failure of wandb stops or slows the training."""

import netrc
import os
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from bert_pretrain.errors import EXIT_STOPPED, first_line

WANDB_SECONDS = 60.0
"""How long wandb may take to start and to finish."""


class WandbRun:
    """An open run of wandb; ``report`` gets one message about each failure."""

    def __init__(self, run: Any, report: Callable[[str], None]) -> None:
        self._run, self._report = run, report

    def log(self, row: dict[str, Any]) -> None:
        """Log ``row`` at its step."""
        if self._run is None:
            return
        try:
            self._run.log(row, step=row["step"])
        except Exception as error:
            self._run = None
            self._report(f"wandb failed and is off from now on: {error}")

    def close(self, status: int) -> None:
        """Finish the run with the exit status of the process; one that stopped and can be resumed is preempted."""
        if self._run is None:
            return
        # In a thread with a timeout: without its server, wandb tries for hours.
        thread = threading.Thread(target=self._finish, args=(status,), daemon=True)
        thread.start()
        thread.join(WANDB_SECONDS)
        if thread.is_alive():
            self._report(f"wandb does not answer; upload the run later: wandb sync {self._run.dir}")

    def _finish(self, status: int) -> None:
        try:
            if status == EXIT_STOPPED:
                self._run.mark_preempting()
            self._run.finish(exit_code=status)
        except Exception as error:
            self._report(f"wandb could not finish: {error}")


def open_wandb(
    mode: str, project: str, run_dir: Path, config: dict[str, Any], report: Callable[[str], None]
) -> WandbRun | None:
    """Start a run of ``mode`` (a value of ``logging.wandb``) or go on with that of ``run_dir``; None if it cannot."""
    if mode == "disabled":
        return None
    attempts: list[Literal["online", "offline"]] = ["online", "offline"]
    for wanted in attempts if mode != "offline" and has_key() else attempts[1:]:
        try:
            import wandb  # takes half a second to load

            run = wandb.init(
                project=project,
                dir=run_dir,
                mode=wanted,
                name=run_dir.name,
                id=run_id(run_dir),
                resume="allow",
                config=config,
                settings=wandb.Settings(silent=True, init_timeout=WANDB_SECONDS),
            )
            return WandbRun(run, report)
        except Exception as error:  # no server, a full disk
            report(f"wandb cannot start {wanted}: {first_line(error)}")
    return None


def run_id(run_dir: Path) -> str:
    """The id of the run in ``run_dir``: drawn once and kept there, so that runs of the same name stay apart."""
    path = run_dir / "wandb_id"
    if not path.exists():
        earlier = (run_dir / "wandb").is_dir()  # of version 0.2 and before, where the name was the id
        path.write_text(run_dir.name if earlier else f"{run_dir.name}-{secrets.token_hex(4)}", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def has_key() -> bool:
    """Whether wandb can log in without asking: a key in the environment, or in ~/.netrc for its own host."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    try:
        return host in netrc.netrc(os.environ.get("NETRC") or None).hosts
    except (OSError, netrc.NetrcParseError):
        return False
