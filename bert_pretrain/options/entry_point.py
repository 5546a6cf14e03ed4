"""Makes a function a command: its options, its help, and one line and an exit status for a user's mistake."""

import functools
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from omegaconf import OmegaConf

from bert_pretrain.errors import ConfigError, system_fault
from bert_pretrain.launch_environment import local_rank
from bert_pretrain.options.command_line import split_flags
from bert_pretrain.options.config_files import choices, groups_of, user_config_dir
from bert_pretrain.options.config_loading import composed, load_config
from bert_pretrain.options.option_schema import help_text
from bert_pretrain.output import steady_output

Schema = TypeVar("Schema")
EntryPoint = Callable[..., None]
"""A command, called with the words behind its name; without, it takes those of the process."""

_EXTRAS = {
    "convert": ("tensorflow",),
    "data": ("bokeh", "distributed", "mwparserfromhell", "py3langid", "rensa", "sentencex", "zstandard"),
    "finetune": ("accelerate", "scipy", "seqeval", "sklearn"),
    "study": ("scipy",),
}
"""The packages, as they are imported, that each extra of ``pip install`` brings."""
_EXAMPLES = {"recipe": "demo", "task": "sst2"}
_FIRST_RANK_PRINTS = 5.0  # seconds


def _missing_extra(error: ModuleNotFoundError, command: str) -> ConfigError | None:
    """What to tell the user of ``command`` if ``error`` is about an optional package; None if it is about another."""
    package = (error.name or "").partition(".")[0]
    for extra in sorted(_EXTRAS, key=lambda name: name != command):
        if package in _EXTRAS[extra]:
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


def exit_on_config_error(function: EntryPoint, command: str = "") -> EntryPoint:
    """End the process with one message and status 2 where ``function`` raises a ``ConfigError`` or misses an extra.

    So do errors of disks and permissions. If the reader of standard output has left (``| head``), end quietly. Where
    several extras bring the package, the message names the one that is called as ``command``.
    """

    @functools.wraps(function)
    def guarded(*args: list[str] | None) -> None:
        try:
            _call(function, args)
        except ConfigError as error:
            fault = error
        except ModuleNotFoundError as error:
            missing = _missing_extra(error, command)
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
            found = system_fault(error)
            if found is None:
                raise
            fault = found
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
        @functools.partial(exit_on_config_error, command=config_name)
        def start(words: list[str] | None = None) -> None:
            flags, options = split_flags(sys.argv[1:] if words is None else words)
            user_dir = user_config_dir(flags.config_dir)
            if flags.help:
                return print(_help(function.__doc__ or "", options, user_dir))
            if flags.cfg:
                return print(OmegaConf.to_yaml(composed(config_name, options, schema, user_dir)), end="")
            return function(load_config(config_name, options, schema, user_dir))

        def _help(intro: str, words: list[str], user_dir: Path | None) -> str:
            """With the values that ``words`` give; a group that has to be chosen is shown with an example."""
            chosen = [word.partition("=")[0] for word in words]
            required = [group for group, choice in groups_of(config_name).items() if choice == "???"]
            missing = [group for group in required if group not in chosen]
            examples = [f"{group}={_EXAMPLES.get(group, choices(group, None)[0])}" for group in missing]
            config = composed(config_name, [*words, *examples], schema, user_dir)
            note = f"Values below are those of {' '.join([*words, *examples])}.\n\n" if words or examples else ""
            values = OmegaConf.to_container(config, resolve=False)
            assert isinstance(values, dict)
            return note + help_text(intro, config_name, schema, values, user_dir)

        start.command = (config_name, schema)  # type: ignore[attr-defined]
        return start

    return decorate
