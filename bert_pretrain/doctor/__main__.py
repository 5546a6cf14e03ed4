"""``bert-pretrain doctor``."""

from dataclasses import replace

from bert_pretrain.config import PretrainConfig
from bert_pretrain.data.remote_shards import local_data
from bert_pretrain.options.entry_point import entry_point


@entry_point("doctor", PretrainConfig)
def main(config: PretrainConfig) -> None:
    """Check a machine before a run: program, versions, system, device, disk, network, shards, two training steps.

        bert-pretrain doctor recipe=demo

    Prints one line per check, with advice if something is wrong. Exits with 0 if a run can start, else with 1. Leaves
    no files behind. To check all ranks of a cluster: torchrun ... -m bert_pretrain.doctor recipe=demo
    """
    from bert_pretrain.doctor.checks import run_checks  # imports torch; by now the options are known to be valid

    run_checks(replace(config, data=local_data(config.data)))


if __name__ == "__main__":
    main()
