"""``bert-pretrain study NAME``."""

import json
import re
import sys
from dataclasses import fields

from bert_pretrain.config import PretrainConfig
from bert_pretrain.options.command_line import checked_words
from bert_pretrain.options.entry_point import entry_point
from bert_pretrain.study.options import StudyConfig


@entry_point("study", StudyConfig)
def study(config: StudyConfig) -> None:
    """Compare optimizers, batch sizes or options with several seeds, and write a table, a figure and verdicts.

        bert-pretrain study pre_normalization scale=toy

    scale=toy takes minutes on a CPU, with a tiny model on a synthetic language. scale=small is a small model on real
    text, your shards, about a minute a run on one core. scale=base is BERT-base on one GPU, on your shards. Any option
    of pretrain, such as data.dir=DIR, applies to every run. Run the same command again to continue a stopped study.
    """
    from bert_pretrain.study.run import run_study  # imports torch; by now the options are known to be valid

    run_study(config)


def main(words: list[str] | None = None) -> None:
    """Take the study's name from the first word, and options of its runs from all that are not the study's own."""
    words = list(sys.argv[1:] if words is None else words)
    if words and not words[0].startswith("-") and "=" not in words[0]:
        words[0] = f"study={words[0]}"
    study(with_run_options(words))


main.command = study.command  # type: ignore[attr-defined]


def with_run_options(words: list[str]) -> list[str]:
    """Collect all ``words`` that are not options of the study itself in ``run_options``, quoted for Hydra."""
    own = {field.name for field in fields(StudyConfig)} | {"study", "hydra"}
    ours = [word for word in words if "=" not in word or re.split(r"[.=@]", word.lstrip("-+~"))[0] in own]
    of_runs = [word for word in words if word not in ours]
    if not of_runs:
        return ours
    checked_words(["recipe=study_toy", *of_runs], "pretrain", PretrainConfig, None)
    return [*ours, f"run_options=[{','.join(json.dumps(word) for word in of_runs)}]"]


if __name__ == "__main__":
    main()
