"""``bert-pretrain doctor``: check a machine before a run."""

from bert_pretrain.config import PretrainConfig
from bert_pretrain.config_loading import entry_point


@entry_point("doctor", PretrainConfig)
def main(config: PretrainConfig) -> None:
    """Check a machine before a run: versions, device, disk, network, shards, two training steps.

        bert-pretrain doctor recipe=demo

    One line per check, with advice where something is wrong. Under torchrun (-m bert_pretrain.doctor) all ranks are
    checked. Exits with 0 if a run can start, with 1 if not. Writes nothing that stays.
    """
    from bert_pretrain.doctor.checks import run_checks  # loads torch, once the command is right

    run_checks(config)


if __name__ == "__main__":
    main()
