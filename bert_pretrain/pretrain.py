"""``bert-pretrain pretrain``, and ``torchrun ... -m bert_pretrain.pretrain``."""

import sys
from dataclasses import replace
from pathlib import Path

from bert_pretrain.config import PretrainConfig
from bert_pretrain.data.remote_shards import local_data
from bert_pretrain.data.row_source import check_address
from bert_pretrain.data.shard_directory import shard_paths
from bert_pretrain.errors import require
from bert_pretrain.hub.shape import resolve_if_needed
from bert_pretrain.options.command_line import split_flags
from bert_pretrain.options.config_files import user_config_dir
from bert_pretrain.options.config_loading import load_config
from bert_pretrain.options.entry_point import entry_point, exit_on_config_error
from bert_pretrain.same_run import check_run_dir
from bert_pretrain.trackers.choice import check_installed


@entry_point("pretrain", PretrainConfig)
def main(config: PretrainConfig) -> None:
    """Pretrain a BERT on shards, or continue the run in run_dir where it stopped.

        bert-pretrain pretrain recipe=demo batch.global_batch_size=64

    Starts one process per GPU of this machine; --processes N chooses. On a cluster:
    torchrun ... -m bert_pretrain.pretrain recipe=NAME. Exits with 75 if the run was asked to stop before its end.
    """
    from bert_pretrain.run import run  # loads torch, once the command is right

    run(config)


@exit_on_config_error
def on_this_machine(words: list[str]) -> None:
    """Run ``main`` in one process per GPU, or in as many as ``--processes N`` says."""
    wanted, words = _take_processes(words)
    flags, options = split_flags(words)
    if flags.help or flags.cfg:
        return main(words)
    config = load_config("pretrain", options, PretrainConfig, user_config_dir(flags.config_dir))
    config = resolve_if_needed(replace(config, data=local_data(config.data)))
    check_run_dir(config)  # these need no torch, which takes seconds to load
    check_installed(config.logging.chosen_trackers())
    if config.data.kind == "shards":
        shard_paths(Path(config.data.dir), "train")
    else:
        check_address(config.data.dir)
    import torch  # takes seconds to load

    processes = wanted or (1 if config.device == "cpu" else max(1, torch.cuda.device_count()))
    if processes == 1:
        return main(words)
    from bert_pretrain.distributed.launch import main as launch

    return launch(["--standalone", f"--nproc-per-node={processes}", "-m", "bert_pretrain.pretrain", *words])


on_this_machine.command = main.command  # type: ignore[attr-defined]


def _take_processes(words: list[str]) -> tuple[int | None, list[str]]:
    """The number behind ``--processes``, or None, and the other words."""
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag == "--processes":
            value = value if equals else words[i + 1] if i + 1 < len(words) else ""
            require(value.isdecimal() and int(value) > 0, flag, value, "a whole number above 0")
            return int(value), [*words[:i], *words[i + (1 if equals else 2) :]]
    return None, words


if __name__ == "__main__":
    main(sys.argv[1:])
