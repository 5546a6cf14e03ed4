"""From Hydra's composed YAML to a typed dataclass, and from there to an entry point's function.

The dataclasses are the schema. Hydra checks names and types of plain overrides; ``+key=value`` bypasses that, so
the composed values are merged once more into a fresh schema, which raises. Range checks sit in ``__post_init__``.
"""

import functools
import os
import re
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from bert_pretrain.errors import ConfigError

CONFIG_DIR = Path(__file__).resolve().parent.parent / "configs"

Schema = TypeVar("Schema")


def to_dataclass(config: DictConfig, schema: type[Schema]) -> Schema:
    """Merge a composed config into ``schema`` and return the dataclass.

    Raises ``ConfigError`` for unknown keys, wrong types, missing values and whatever ``__post_init__`` refuses.
    """
    try:
        values = OmegaConf.to_container(config, resolve=True)
        typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except OmegaConfBaseException as error:
        key = error.full_key or error.key
        reason = (error.msg or str(error)).splitlines()[0]
        raise ConfigError(f"option {key}: {reason}") from None
    assert isinstance(typed, schema)
    return typed


_FOR_HYDRA = r"Config search path.*|(To append to|See https|full_key|object_type|reference_type)[^\n]*"


def composed(config_name: str, words: list[str]) -> DictConfig:
    """``configs/<config_name>.yaml`` with the overrides ``words``, inside ``initialize_config_dir``.

    Raises ``ConfigError``, in one line, for what Hydra refuses: an unknown option or group, a value of the wrong type.
    """
    try:
        config = compose(config_name, words, return_hydra_config=True)
    except Exception as error:  # of many kinds, for a word that is not of its grammar
        said = [str(found) for found in (error, error.__cause__) if found is not None]
        reason = " ".join(re.sub(_FOR_HYDRA, "", "\n".join(said), flags=re.S).split())
        raise ConfigError(f"{reason}; --cfg job prints all options, --help the groups") from None
    HydraConfig.instance().set_config(config)  # for ${hydra:runtime.choices...} in our YAML
    with open_dict(config):
        del config["hydra"]
    return config


def help_text(usage: str, config_name: str) -> str:
    """What an entry says to ``--help``: its usage, the groups and what they offer."""
    choices: dict[Path, list[str]] = {}
    for path in sorted(CONFIG_DIR.rglob("*.yaml")):
        if path.parent != CONFIG_DIR:
            choices.setdefault(path.parent.relative_to(CONFIG_DIR), []).append(path.stem)
    groups = "\n".join(f"  {f'{group}=':<13}{' | '.join(names)}" for group, names in choices.items())
    return (
        f"{usage.strip()}\n\nGroups of options, of those that this entry has:\n{groups}\n\n"
        f"Single options: configs/{config_name}.yaml; --cfg job prints all of them as they would be."
    )


def print_error(error: ConfigError) -> None:
    """Print a user's error on one line of standard error."""
    print(f"error: {error}", file=sys.stderr, flush=True)


def end_without_reader() -> None:
    """End as a program does whose reader has left (``| head``), if that is so: with a shell's status for SIGPIPE."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    if any(event & select.POLLERR for _, event in output.poll(0)):
        os._exit(128 + signal.SIGPIPE)  # the interpreter's own end would write once more


def entry_point(
    config_name: str, schema: type[Schema], report: Callable[[ConfigError], None] = print_error
) -> Callable[[Callable[[Schema], None]], Callable[[], None]]:
    """Make ``function(config)`` an entry point: Hydra composes ``configs/<config_name>.yaml`` and the command line.

    A ``ConfigError`` ends the process with status 2 after ``report`` has printed it, without a traceback. With an
    option of Hydra's own (``--cfg job``) its command line takes over.
    """
    ConfigStore.instance().store(name=f"{config_name}_schema", node=schema)

    def decorate(function: Callable[[Schema], None]) -> Callable[[], None]:
        def start() -> None:
            try:
                run()
                sys.stdout.flush()
            except BrokenPipeError:
                end_without_reader()
                raise

        def run() -> None:
            if {"-h", "--help"} & set(sys.argv[1:]):
                return print(help_text(sys.modules[function.__module__].__doc__ or "", config_name))
            if any(word.startswith("-") for word in sys.argv[1:]):
                return hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)(task)()
            with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
                return end_with_report(lambda: function(to_dataclass(composed(config_name, sys.argv[1:]), schema)))

        @functools.wraps(function)
        def task(config: DictConfig) -> None:
            end_with_report(lambda: function(to_dataclass(config, schema)))

        def end_with_report(work: Callable[[], None]) -> None:
            try:
                work()
            except ConfigError as error:
                report(error)
                sys.exit(2)

        return start

    return decorate
