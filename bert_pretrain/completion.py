"""``bert-pretrain completion``: complete commands, options and choices in bash and zsh."""

from importlib import import_module
from itertools import zip_longest

from bert_pretrain.cli import COMMANDS
from bert_pretrain.errors import ConfigError
from bert_pretrain.options.command_line import FLAGS
from bert_pretrain.options.config_files import choices, groups_of, user_config_dir
from bert_pretrain.options.entry_point import exit_on_config_error
from bert_pretrain.options.option_schema import options_of

_SCRIPT = r"""_bert_pretrain() {
  local IFS=$'\n'
  COMPREPLY=($(bert-pretrain completion words "${COMP_LINE:0:COMP_POINT}" 2>/dev/null))
}
complete -o nospace -o default -F _bert_pretrain bert-pretrain"""
_HELP = """Print the shell completion of bert-pretrain. Put one line into ~/.bashrc or ~/.zshrc:

    eval "$(bert-pretrain completion bash)"
    eval "$(bert-pretrain completion zsh)\""""


@exit_on_config_error
def main(words: list[str]) -> None:
    """Print the script of a shell, or, as that script asks, the words that may follow a line."""
    if words == ["bash"]:
        return print(_SCRIPT)
    if words == ["zsh"]:
        return print(f"autoload -U +X bashcompinit && bashcompinit\n{_SCRIPT}")
    if len(words) == 2 and words[0] == "words":
        return print("\n".join(completions(words[1])))
    if words in (["--help"], ["-h"]):
        return print(_HELP)
    raise ConfigError(f"completion was asked for {' '.join(words)!r}; allowed: bash, zsh")


def completions(line: str) -> list[str]:
    """The words that may end ``line``; of ``group=choice`` what follows the ``=``, since bash splits there."""
    _, *words = line.split()
    last = "" if line.endswith(" ") or not words else words.pop()
    if not words:
        return [f"{name} " for name in COMMANDS if name.startswith(last)]
    if words[0] not in COMMANDS:
        return []
    module, _, function = COMMANDS[words[0]][0].partition(":")
    command = getattr(getattr(import_module(module), function), "command", None)
    if command is None:
        return []
    config_name, schema = command
    key, equals, value = last.partition("=")
    if equals:
        user_dir = user_config_dir(_config_dir(words[1:]))
        return [f"{choice} " for choice in choices(key, user_dir) if choice.startswith(value)]
    if last.startswith("-"):
        return [f"{flag} " for flag in FLAGS if flag.startswith(last)]
    names = [*groups_of(config_name), *(option.name for option in options_of(schema))]
    return [f"{name}=" for name in names if name.startswith(key)]


def _config_dir(words: list[str]) -> str | None:
    """The folder of ``--config-dir``, if it is among ``words``."""
    for word, following in zip_longest(words, words[1:]):
        if word == "--config-dir":
            return following
        if word.startswith("--config-dir="):
            return word.partition("=")[2]
    return None
