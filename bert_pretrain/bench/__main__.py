"""``bert-pretrain bench step|optimizer``: where the time of a step goes."""

import sys

from bert_pretrain.bench.options import BenchOptimizerConfig, BenchStepConfig
from bert_pretrain.config_loading import entry_point, print_error
from bert_pretrain.errors import ConfigError, did_you_mean

_HELP = """Measure where the time goes, as ratios within one run.

    bert-pretrain bench step recipe=demo      a training step, against a plain script and each technique in turn
    bert-pretrain bench optimizer             one update of NVLAMB by every kernel, against torch's optimizers

bench step --help and bench optimizer --help list their options."""


@entry_point("bench_step", BenchStepConfig)
def step(config: BenchStepConfig) -> None:
    """Measure the training step against a plain script, each technique added in turn.

        bert-pretrain bench step recipe=demo

    Writes step.json and step.png. Under torchrun (-m bert_pretrain.bench step) communication is measured too.
    """
    from bert_pretrain.bench.step import run  # loads torch, once the command is right

    run(config)


@entry_point("bench_optimizer", BenchOptimizerConfig)
def optimizer(config: BenchOptimizerConfig) -> None:
    """Measure one update of NVLAMB by every kernel, against torch's and other optimizers.

        bert-pretrain bench optimizer models=[base]

    Writes optimizer.json. One process; times are given as ratios to torch's fused AdamW.
    """
    from bert_pretrain.bench.optimizer import run  # loads torch, once the command is right

    run(config)


BENCHMARKS = {"step": step, "optimizer": optimizer}


def main(words: list[str] | None = None) -> None:
    """Dispatch on the first word."""
    words = list(sys.argv[1:] if words is None else words)
    if words and words[0] in BENCHMARKS:
        return BENCHMARKS[words[0]](words[1:])
    if words and words[0] in ("-h", "--help"):
        return print(_HELP)
    found = repr(words[0]) if words else "nothing"
    print_error(ConfigError(f"bench was asked for {found}; {did_you_mean(found, BENCHMARKS)}"))
    sys.exit(2)


if __name__ == "__main__":
    main()
