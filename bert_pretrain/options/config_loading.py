"""From Hydra's composed YAML to a typed dataclass.

The dataclasses are the schema. Hydra checks names and types of plain overrides; ``+key=value`` bypasses that, so
the composed values are merged once more into a fresh schema, which raises. Range checks sit in ``__post_init__``.
"""

import math
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from bert_pretrain.errors import ConfigError, did_you_mean, require
from bert_pretrain.options.command_line import checked_words, nearest_options, quoted
from bert_pretrain.options.config_files import CONFIG_DIR, choices

Schema = TypeVar("Schema")


def to_dataclass(config: DictConfig, schema: type[Schema]) -> Schema:
    """Merge a composed config into ``schema`` and return the dataclass.

    Raises ``ConfigError`` for unknown keys, wrong types, missing values and whatever ``__post_init__`` refuses.
    """
    if missing := _missing(OmegaConf.to_container(config, resolve=False)):
        raise ConfigError(f"not set: {', '.join(missing)}; give {missing[0]}=VALUE")
    try:
        values = OmegaConf.to_container(config, resolve=True)
        typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except OmegaConfBaseException as error:
        key = error.full_key or error.key
        reason = (error.msg or str(error)).splitlines()[0]
        raise ConfigError(f"option {key}: {reason}") from None
    assert isinstance(typed, schema)
    _check_numbers(typed, "")
    return typed


_MOST = 1e38


def _check_numbers(value: Any, name: str, endless: bool = False) -> None:
    """Refuse numbers that mean nothing for any option: nan, those that float32 does not hold (but inf if ``endless``),
    integers of more than 62 bits."""
    if is_dataclass(value):
        for field in fields(value):
            part = f"{name}.{field.name}".lstrip(".")
            _check_numbers(getattr(value, field.name), part, field.metadata.get("endless", False))
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _check_numbers(item, f"{name}.{key}")
    elif isinstance(value, float):
        require(abs(value) <= _MOST or (endless and value == math.inf), name, value, "a finite number, up to 1e38")
    elif isinstance(value, int):
        require(abs(value) < 1 << 62, name, value, "a number below 2^62")


def _missing(values: Any, prefix: str = "") -> list[str]:
    """The options in nested ``values`` that are ``???``."""
    if not isinstance(values, dict):
        return [prefix] if values == "???" else []
    return [name for key, value in values.items() for name in _missing(value, f"{prefix}.{key}".lstrip("."))]


_FOR_HYDRA = r"Config search path.*|(To append to|See https|full_key|object_type|reference_type)[^\n]*"


def composed(config_name: str, words: list[str], schema: type, user_dir: Path | None = None) -> DictConfig:
    """``configs/<config_name>.yaml`` with ``words`` as typed; ``user_dir`` adds to the choices of groups.

    Raises ``ConfigError``, in one line, for what Hydra refuses: an unknown option or group, a value of the wrong type.
    """
    ConfigStore.instance().store(name=f"{config_name}_schema", node=schema)  # the YAML names it in its defaults list
    overrides = checked_words(words, config_name, schema, user_dir)
    search = [] if user_dir is None else [f"hydra.searchpath=[{quoted(f'file://{user_dir}')}]"]
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            config = compose(config_name, [*overrides, *search], return_hydra_config=True)
            HydraConfig.instance().set_config(config)  # for ${hydra:runtime.choices...} in our YAML
    except Exception as error:  # of many kinds, for a word that is not of its grammar
        texts = [str(found) for found in (error, error.__cause__) if found is not None]
        raise ConfigError(_in_plain_words("\n".join(texts), schema, user_dir)) from None
    with open_dict(config):
        del config["hydra"]
    return config


def _in_plain_words(text: str, schema: type, user_dir: Path | None) -> str:
    """Hydra's error ``text`` in one line: which file or option is wrong, and what is allowed."""
    place = re.search(r"In '(.+?)'", text)
    where = f"configuration {place[1]}: " if place and place[1] != "run" else ""
    if key := re.search(r"Key '(.+?)' not in", text):
        return f"{where}there is no option {key[1]!r}; {nearest_options(key[1], schema)}"
    if choice := re.search(r"Could not (?:load|find) '(.+)/(.+?)'", text):
        return f"{where}there is no {choice[1]} {choice[2]!r}; {did_you_mean(choice[2], choices(choice[1], user_dir))}"
    if "Unexpected type for root: NoneType" in text:
        return "an option of optimizer.others is set, which is null here; choose one that has it, as optimizer=muon"
    option = re.search(r"full_key: (\S+)", text)
    reason = " ".join(re.sub(_FOR_HYDRA, "", text, flags=re.S).split())
    reason = re.sub(r"(In '.+?': )?\w+Error raised while composing config: ", "", reason)
    return f"{where}{f'{option[1]}: ' if option else ''}{reason}"


def load_config(config_name: str, words: list[str], schema: type[Schema], user_dir: Path | None = None) -> Schema:
    """The options of a command, from ``configs/<config_name>.yaml`` and ``words`` as typed. Raises ``ConfigError``."""
    return to_dataclass(composed(config_name, words, schema, user_dir), schema)
