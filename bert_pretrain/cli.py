"""The command ``bert-pretrain``: finds a subcommand by name and hands it the rest of the command line.

Nothing of a subcommand is imported before it is known which one is meant.
"""

import sys
from importlib import import_module

from bert_pretrain.errors import ConfigError, did_you_mean
from bert_pretrain.options.entry_point import exit_on_config_error
from bert_pretrain.program import version_line

COMMANDS = {
    "prepare": ("data_prep.prepare:main", "make training shards from text"),
    "show": ("data_prep.show:main", "print documents of a corpus as prepare would clean and split them"),
    "verify": ("data_prep.verify:main", "check a directory of shards"),
    "data-report": ("data_prep.report.run:main", "write a page about a directory of shards"),
    "plan": ("bert_pretrain.plan.run:main", "print what a run will take, before it starts"),
    "doctor": ("bert_pretrain.doctor.__main__:main", "check a machine before a run"),
    "pretrain": ("bert_pretrain.pretrain:on_this_machine", "pretrain, on every GPU of this machine"),
    "report": ("bert_pretrain.report.run:main", "write a page about a run"),
    "export": ("bert_pretrain.hub.export:main", "write a checkpoint as a folder for transformers"),
    "push-shards": ("bert_pretrain.hub.push_shards:main", "push a directory of shards to the hub, with a card"),
    "convert": ("bert_pretrain.hub.convert.command:main", "turn another program's checkpoint into such a folder"),
    "evaluate": ("bert_pretrain.hub.evaluate:main", "measure a model on held-out shards: loss, perplexity, accuracy"),
    "fill-mask": ("bert_pretrain.hub.fill_mask:main", "print the most likely words for [MASK]"),
    "finetune": ("bert_pretrain.finetune.__main__:main", "fine-tune and score on GLUE or SQuAD"),
    "glue-zip": ("bert_pretrain.finetune.submission:main", "pack predictions of all GLUE tasks for its server"),
    "study": ("bert_pretrain.study.__main__:main", "compare optimizers, batch sizes, schedules"),
    "bench": ("bert_pretrain.bench.__main__:main", "measure where the time goes"),
    "recipes": ("bert_pretrain.recipes:main", "list, copy and check recipes"),
    "completion": ("bert_pretrain.completion:main", "print the shell completion for bash or zsh"),
}
"""By name: where the subcommand is, and what it does."""


@exit_on_config_error
def main() -> None:
    """Run the subcommand that the first word names. Exits with 2 for a mistake in the command."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        sys.exit(0 if words else 2)
    if words[0] == "--version":
        return print(version_line())
    if words[0] not in COMMANDS:
        raise ConfigError(f"bert-pretrain has no command {words[0]!r}; {did_you_mean(words[0], COMMANDS)}")
    module, _, function = COMMANDS[words[0]][0].partition(":")
    return getattr(import_module(module), function)(words[1:])


def usage() -> str:
    """The help of ``bert-pretrain`` itself."""
    rows = "\n".join(f"  {name:<13}{summary}" for name, (_, summary) in COMMANDS.items())
    return (
        "Pretrain BERT from text to a transformers checkpoint, at any batch size.\n\n"
        f"    bert-pretrain COMMAND [option=value ...]\n\nCommands:\n{rows}\n\n"
        "bert-pretrain COMMAND --help lists the options of a command; bert-pretrain --version prints the version."
    )


if __name__ == "__main__":
    main()
