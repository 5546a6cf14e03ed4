"""``bert-pretrain bench step`` and ``bert-pretrain bench optimizer``."""

import sys

from bert_pretrain.bench.options import BenchOptimizerConfig, BenchStepConfig
from bert_pretrain.errors import ConfigError, did_you_mean
from bert_pretrain.options.entry_point import entry_point, print_error

_HELP = """Measure the time of a training step, or of the optimizer, as ratios within one run.

    bert-pretrain bench step recipe=demo      a training step, compared with a plain script; one row per technique
    bert-pretrain bench optimizer             one NVLAMB step with every kernel, compared with torch's optimizers

bench step --help and bench optimizer --help list their options."""


@entry_point("bench_step", BenchStepConfig)
def step(config: BenchStepConfig) -> None:
    """Measure a training step, compared with a plain script, adding one technique at a time.

        bert-pretrain bench step recipe=demo

    Prints time, tokens per second, MFU and memory of each variant, and the time of each phase. Writes step.json and
    step.png. To include communication: torchrun ... -m bert_pretrain.bench step recipe=demo
    """
    from bert_pretrain.bench.step import run  # imports torch; by now the options are known to be valid

    run(config)


@entry_point("bench_optimizer", BenchOptimizerConfig)
def optimizer(config: BenchOptimizerConfig) -> None:
    """Measure one NVLAMB step with every kernel, compared with torch's AdamW.

        bert-pretrain bench optimizer models=[base]

    Prints time, memory traffic and ratios to torch's fused AdamW. Writes optimizer.json. Runs as one process.
    """
    from bert_pretrain.bench.optimizer import run  # imports torch; by now the options are known to be valid

    run(config)


BENCHMARKS = {"step": step, "optimizer": optimizer}


def main(words: list[str] | None = None) -> None:
    """Run the benchmark that the first word names."""
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
