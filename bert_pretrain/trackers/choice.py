"""The trackers that can be chosen. Loads none of them, so that a mistake is told at once."""

from importlib import import_module
from importlib.util import find_spec

from bert_pretrain.errors import ConfigError, on_one_line
from bert_pretrain.trackers.tracker import TrackedRun, stored_id

TRACKERS = ("wandb", "tensorboard", "mlflow", "trackio")
"""Each is a module of this package, a library, and an extra of ``pip install``, all of the same name."""


def check_installed(names: list[str]) -> None:
    """Raise ``ConfigError`` if a library of these trackers is not installed."""
    if missing := [name for name in names if find_spec(name) is None]:
        verb = "which is not installed" if len(missing) == 1 else "which are not installed"
        raise ConfigError(
            f"logging.trackers has {', '.join(missing)}, {verb}: pip install 'bert-pretrain[{','.join(missing)}]'"
        )


def load_trackers(names: list[str], run: TrackedRun) -> None:
    """Load the trackers' libraries, ask mlflow's store, read the run's id. Raises ``ConfigError`` for what fails."""
    check_installed(names)
    if names:
        stored_id(run.run_dir)
    for name in names:
        try:
            module = import_module(f"bert_pretrain.trackers.{name}")
        except Exception as error:  # of any kind: the library is not ours
            raise ConfigError(
                f"logging.trackers has {name}, which cannot be loaded ({on_one_line(error)}); mend its installation "
                f"(pip install 'bert-pretrain[{name}]'), or leave it out"
            ) from None
        if hasattr(module, "check") and not (run.run_dir / "config.yaml").exists():  # a resume goes on regardless
            module.check(run)
