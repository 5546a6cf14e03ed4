"""From Hydra's composed YAML to a typed dataclass, and from there to an entry point's function.

The dataclasses are the schema. Hydra checks names and types of plain overrides; ``+key=value`` bypasses that, so
the composed values are merged once more into a fresh schema, which raises. Range checks sit in ``__post_init__``.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
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


def print_error(error: ConfigError) -> None:
    """Print a user's error on one line of standard error."""
    print(f"error: {error}", file=sys.stderr, flush=True)


def entry_point(
    config_name: str, schema: type[Schema], report: Callable[[ConfigError], None] = print_error
) -> Callable[[Callable[[Schema], None]], Callable[[], None]]:
    """Make ``function(config)`` an entry point: Hydra composes ``configs/<config_name>.yaml`` and the command line.

    A ``ConfigError`` ends the process with status 2 after ``report`` has printed it, without a traceback.
    """
    ConfigStore.instance().store(name=f"{config_name}_schema", node=schema)

    def decorate(function: Callable[[Schema], None]) -> Callable[[], None]:
        @functools.wraps(function)
        def task(config: DictConfig) -> None:
            try:
                function(to_dataclass(config, schema))
            except ConfigError as error:
                report(error)
                sys.exit(2)

        return hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)(task)

    return decorate
