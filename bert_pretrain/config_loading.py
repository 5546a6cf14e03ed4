"""From Hydra's composed YAML to a typed dataclass, and from there to a command's function.

The dataclasses are the schema. Hydra checks names and types of plain overrides; ``+key=value`` bypasses that, so
the composed values are merged once more into a fresh schema, which raises. Range checks sit in ``__post_init__``.
"""

import functools
import math
import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from bert_pretrain.command_line import checked_words, nearest_options, quoted, split_flags
from bert_pretrain.config_files import CONFIG_DIR, choices, groups_of, user_config_dir
from bert_pretrain.errors import ConfigError, did_you_mean, fault_of_place, require
from bert_pretrain.launch_environment import local_rank
from bert_pretrain.option_schema import help_text
from bert_pretrain.output import steady_output

Schema = TypeVar("Schema")


EntryPoint = Callable[..., None]
"""A command, called with the words behind its name; without, it takes those of the process."""


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


_EXTRAS = {
    "convert": ("tensorflow",),
    "data": ("bokeh", "distributed", "mwparserfromhell", "py3langid", "rensa", "sentencex", "zstandard"),
    "finetune": ("accelerate", "scipy", "sklearn"),
}
"""The packages that each extra of ``pip install`` brings."""
_EXAMPLES = {"recipe": "demo", "task": "sst2"}
_FIRST_RANK_PRINTS = 5.0  # seconds
_FOR_HYDRA = r"Config search path.*|(To append to|See https|full_key|object_type|reference_type)[^\n]*"


def _composed(config_name: str, words: list[str], schema: type, user_dir: Path | None = None) -> DictConfig:
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
    return to_dataclass(_composed(config_name, words, schema, user_dir), schema)


def _missing_extra(error: ModuleNotFoundError) -> ConfigError | None:
    """What to tell the user if ``error`` is about an optional package; None if it is about another."""
    package = (error.name or "").partition(".")[0]
    for extra, packages in _EXTRAS.items():
        if package in packages:
            return ConfigError(
                f"this needs the package {package}, which is not installed: pip install 'bert-pretrain[{extra}]'"
            )
    return None


def print_error(error: ConfigError) -> None:
    """Print a user's error on one line of standard error."""
    with suppress(OSError):  # a full disk: the exit status still tells
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr, flush=True)


def print_error_of_node(error: ConfigError) -> None:
    """Print an error that most likely all ranks of a node have: the first at once, the others if they live on.

    A launcher ends the other ranks when the first has exited.
    """
    if local_rank() > 0:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        time.sleep(_FIRST_RANK_PRINTS)
    print_error(error)


def end_without_reader() -> None:
    """Exit with a shell's status for SIGPIPE if the reader of standard output has left (``| head``)."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    if any(event & select.POLLERR for _, event in output.poll(0)):
        os._exit(128 + signal.SIGPIPE)  # the interpreter's own exit would write once more


def _call(function: EntryPoint, args: tuple[list[str] | None, ...]) -> None:
    """``function(*args)``; raises ``ConfigError`` if its product, standard output, could not be written."""
    with steady_output() as output:
        try:
            function(*args)
            output.flush()
            if output.failed_lines and not output.goes_on:
                raise ConfigError(f"standard output cannot be written ({output.reason})")
        finally:
            output.finish()


def exit_on_config_error(function: EntryPoint) -> EntryPoint:
    """End the process with one message and status 2 where ``function`` raises a ``ConfigError`` or misses an extra.

    So do errors of disks and permissions. If the reader of standard output has left (``| head``), end quietly.
    """

    @functools.wraps(function)
    def guarded(*args: list[str] | None) -> None:
        try:
            _call(function, args)
        except ConfigError as error:
            fault = error
        except ModuleNotFoundError as error:
            missing = _missing_extra(error)
            if missing is None:
                raise
            fault = missing
        except BrokenPipeError:
            end_without_reader()
            raise
        except KeyboardInterrupt:
            with suppress(OSError):
                print("interrupted", file=sys.stderr, flush=True)
            sys.exit(128 + signal.SIGINT)
        except Exception as error:
            of_place = fault_of_place(error)
            if of_place is None:
                raise
            fault = of_place
        else:
            return
        print_error_of_node(fault)
        sys.exit(fault.exit_status)

    return guarded


def entry_point(config_name: str, schema: type[Schema]) -> Callable[[Callable[[Schema], None]], EntryPoint]:
    """Make ``function(config)`` a command: options of ``schema``, values of ``configs/<config_name>.yaml``.

    Its docstring is the command's help. A ``ConfigError`` is printed on one line, and the process exits with status 2.
    Import what is slow to load inside the function, so that a mistake in the options is reported before.
    """

    def decorate(function: Callable[[Schema], None]) -> EntryPoint:
        @functools.wraps(function)
        @exit_on_config_error
        def start(words: list[str] | None = None) -> None:
            flags, options = split_flags(sys.argv[1:] if words is None else words)
            user_dir = user_config_dir(flags.config_dir)
            if flags.help:
                return print(_help(function.__doc__ or "", options, user_dir))
            if flags.cfg:
                return print(OmegaConf.to_yaml(_composed(config_name, options, schema, user_dir)), end="")
            return function(load_config(config_name, options, schema, user_dir))

        def _help(intro: str, words: list[str], user_dir: Path | None) -> str:
            """With the values that ``words`` give; a group that has to be chosen is shown with an example."""
            chosen = [word.partition("=")[0] for word in words]
            required = [group for group, choice in groups_of(config_name).items() if choice == "???"]
            missing = [group for group in required if group not in chosen]
            examples = [f"{group}={_EXAMPLES.get(group, choices(group, None)[0])}" for group in missing]
            config = _composed(config_name, [*words, *examples], schema, user_dir)
            note = f"Values below are those of {' '.join([*words, *examples])}.\n\n" if words or examples else ""
            values = OmegaConf.to_container(config, resolve=False)
            assert isinstance(values, dict)
            return note + help_text(intro, config_name, schema, values, user_dir)

        start.command = (config_name, schema)  # type: ignore[attr-defined]
        return start

    return decorate
