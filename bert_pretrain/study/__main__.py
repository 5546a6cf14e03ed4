"""``bert-pretrain study NAME``: the comparisons of optimizers, batch sizes and schedules."""

import json
import re
import sys
from dataclasses import fields

from bert_pretrain.command_line import checked_words
from bert_pretrain.config import PretrainConfig
from bert_pretrain.config_loading import entry_point
from bert_pretrain.study.options import StudyConfig


@entry_point("study", StudyConfig)
def study(config: StudyConfig) -> None:
    """Run a comparison of the article (optimizers, batch sizes, schedules), and write its table and figure.

        bert-pretrain study pre_normalization scale=toy

    Other options, such as data.dir=DIR, go to every run of the study. A study that was stopped continues.
    """
    from bert_pretrain.study.run import run_study  # loads torch, once the command is right

    run_study(config)


def main(words: list[str] | None = None) -> None:
    """Take the study's name from the first word, and the options of its runs from the others."""
    words = list(sys.argv[1:] if words is None else words)
    if words and not words[0].startswith("-") and "=" not in words[0]:
        words[0] = f"study={words[0]}"
    study(with_run_options(words))


main.command = study.command  # type: ignore[attr-defined]


def with_run_options(words: list[str]) -> list[str]:
    """``words`` with all that is no option of the study itself gathered in ``run_options``, as text for Hydra."""
    own = {field.name for field in fields(StudyConfig)} | {"study", "hydra"}
    ours = [word for word in words if "=" not in word or re.split(r"[.=@]", word.lstrip("-+~"))[0] in own]
    of_runs = [word for word in words if word not in ours]
    if not of_runs:
        return ours
    checked_words(["recipe=study_toy", *of_runs], "pretrain", PretrainConfig, None)
    return [*ours, f"run_options=[{','.join(json.dumps(word) for word in of_runs)}]"]


if __name__ == "__main__":
    main()
