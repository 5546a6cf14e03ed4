"""Mistakes of a user: one message, no traceback, status 2, nothing overwritten."""

import importlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bert_pretrain.distributed.preemption import STOP_SIGNALS
from tests.bert_pretrain.data.test_loader import damaged
from tests.conftest import HANGS, ROOT, TEST_RECIPE, run_module
from tests.forked import Forked


def tree(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def refused(module: str, *options: str, mentions: str, ranks: int = 0) -> str:
    run = Forked(module, *options, ranks=ranks)
    done = run.wait()
    assert run.statuses[0] == 2, done.stdout
    assert set(run.statuses[1:]) <= {2, -signal.SIGTERM}  # ended by the launcher, before it prints the same
    check(done.stdout, done.stderr, mentions)
    return done.stderr


def check(out: str, error: str, mentions: str) -> None:
    assert error.startswith("error: ")
    assert mentions in error
    assert len(error.strip().splitlines()) == 1, error
    assert "step       1/" not in out


@pytest.fixture
def refused_here(monkeypatch, capsys) -> Iterator[Callable[..., str]]:
    """``refused`` in this process."""
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def run(module: str, *options: str, mentions: str) -> str:
        monkeypatch.setattr(sys, "argv", [module, *options])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            importlib.import_module(module).main()
        printed = capsys.readouterr()
        assert end.value.code == 2
        check(printed.out, printed.err, mentions)
        return printed.err

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("options", "mentions"),
    [
        (("optimzer.lr=1",), "optimzer"),
        (("optimizer.leraning_rate=1",), "leraning_rate"),
        (("+optimizer.momentum=0.9",), "optimizer.momentum"),
        (("schedule.total_steps=many",), "schedule.total_steps"),
        (("optimizer.lr=-1",), "optimizer.lr"),
        (("optimizer.kernel=fast",), "optimizer.kernel is 'fast'"),
        (("optimizer.kernel=apex",), "kernel is 'apex'"),
        (("optimizer.betas=[0.9,1.5]",), "optimizer.betas is [0.9, 1.5]"),
        (("optimizer=adammw",), "adammw"),
        (("recipe=dmeo",), "dmeo"),
        (("batch.global_batch_size=0",), "batch.global_batch_size is 0"),
        (("batch.global_batch_size=1000000000000",), "allowed: 1 to 16,777,216"),
        (("schedule.total_steps=1000000000000",), "schedule.total_steps is 1000000000000"),
        (("data.prefetch=1000000000000",), "data.prefetch is 1000000000000; allowed: 1 to 10,000"),
        (("communication.bucket_mb=inf",), "communication.bucket_mb is inf"),
        (("communication.timeout_seconds=1e300",), "communication.timeout_seconds is 1e+300"),
        (("training.stop_after_minutes=inf",), "training.stop_after_minutes is inf; allowed: a finite number"),
        (("precision.initial_loss_scale=1e300",), "precision.initial_loss_scale is 1e+300"),
        (("checkpoint.keep_last=99999999999999999999",), "checkpoint.keep_last is 99999999999999999999"),
        (("optimizer.lr=1e30",), "optimizer.lr is 1e+30; allowed: above 0, up to 1e+06"),
        (("model.initializer_range=-1",), "model.initializer_range is -1"),
        (("model.intermediate_size=1000000000000",), "GiB of memory; give a smaller model"),
        (("model.num_hidden_layers=1000000000000",), "GiB of memory; give a smaller model"),
        (("model.hidden_size=15",), "model.hidden_size is 15"),
        (("data.sequence_length=32",), "data.sequence_length is 32"),
        (("model.vocab_size=96",), "model.vocab_size is 96"),
        (("data.dir=/nowhere",), "data.dir is '/nowhere'"),
        (("precision.compute=int8",), "precision.compute"),
        (("precision.compute=fp16", "device=cpu"), "precision.compute is 'fp16'"),
        (("device=cuda:9",), "device is 'cuda:9'"),
        (("init_moments=forget",), "init_moments"),
        (("init_from=/nowhere",), "init_from is '/nowhere'"),
        (("run_dir=/proc/run",), "run_dir /proc/run"),
        (("data.masking=dynamic",), "data.tokenizer"),
        (("data.mask_share=0.5",), "data.mask_share is 0.5; allowed: null with data.masking=static"),
        (("data.masking=dynamic", "data.random_share=-1"), "data.random_share is -1"),
    ],
)
def test_pretrain_names_the_option(
    tmp_path: Path, shard_dir: Path, options: tuple[str, ...], mentions: str, refused_here: Callable[..., str]
) -> None:
    base = [*TEST_RECIPE, f"data.dir={shard_dir}", f"run_dir={tmp_path / 'run'}"]
    names = {option.lstrip("+").partition("=")[0] for option in options}
    kept = [option for option in base if option.partition("=")[0] not in names]
    refused_here("bert_pretrain.pretrain", *kept, *options, mentions=mentions)
    assert not tree(tmp_path), "a mistake must not leave a run directory"


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "newest_checkpoint.json"])
def test_a_directory_in_the_place_of_a_file_is_told_as_such(
    tmp_path: Path, shard_dir: Path, name: str, refused_here: Callable[..., str]
) -> None:
    (tmp_path / name).mkdir()
    options = [*TEST_RECIPE, f"data.dir={shard_dir}", f"run_dir={tmp_path}"]
    refused_here("bert_pretrain.pretrain", *options, mentions=f"{tmp_path / name} is a directory, but a run has a file")


@pytest.mark.parametrize("kind", ["truncated", "ids", "empty"])
def test_pretrain_names_the_shard(tmp_path: Path, kind: str, refused_here: Callable[..., str]) -> None:
    damaged(tmp_path / "data", kind)
    options = [*TEST_RECIPE, f"data.dir={tmp_path / 'data'}", f"run_dir={tmp_path / 'run'}"]
    refused_here("bert_pretrain.pretrain", *options, mentions="error: ")


def test_a_run_directory_of_another_recipe_is_not_touched(tmp_path: Path, shard_dir: Path) -> None:
    options = [*TEST_RECIPE, f"data.dir={shard_dir}", f"run_dir={tmp_path / 'run'}"]
    assert run_module("bert_pretrain.pretrain", *options).returncode == 0
    before = tree(tmp_path)
    message = refused("bert_pretrain.pretrain", *options, "optimizer.lr=0.5", mentions="belongs to another run")
    assert "optimizer.lr was 0.0075 and is 0.5" in message
    assert tree(tmp_path) == before


def test_the_plan_refuses_such_a_run_directory_too(tmp_path: Path, shard_dir: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    options = [*TEST_RECIPE, f"data.dir={shard_dir}", f"run_dir={tmp_path}"]
    refused("bert_pretrain.plan", *options, mentions="holds a run without a config.yaml")


@pytest.mark.parametrize(
    ("option", "mentions"),
    [
        ("model.vocab_size=96", "error: model.vocab_size is 96"),
        ("optimizer.lrr=1", "error: there is no option 'optimizer.lrr'"),
    ],
)
def test_two_ranks_print_the_message_once(tmp_path: Path, shard_dir: Path, option: str, mentions: str) -> None:
    options = [*TEST_RECIPE, f"data.dir={shard_dir}", f"run_dir={tmp_path / 'run'}", option]
    refused("bert_pretrain.pretrain", *options, mentions=mentions, ranks=2)


def test_an_output_that_is_a_file_is_refused(tmp_path: Path, shard_dir: Path) -> None:
    (tmp_path / "run").write_text("mine")
    options = [*TEST_RECIPE, f"data.dir={shard_dir}", f"run_dir={tmp_path / 'run'}"]
    refused("bert_pretrain.pretrain", *options, mentions="run_dir")
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.parametrize(
    ("module", "options", "mentions"),
    [
        ("bert_pretrain.hub.export", ("run_dir=/nowhere", "out_dir=/tmp/x"), "run_dir is '/nowhere'"),
        ("bert_pretrain.hub.fill_mask", ("model_dir=/nowhere", "sentences=[a]"), "model_dir is '/nowhere'"),
        ("bert_pretrain.report", ("run_dir=/nowhere",), "run_dir is '/nowhere'"),
        ("bert_pretrain.plan", ("recipe=demo", "devices=65"), "there are 65 ranks"),
        ("bert_pretrain.plan", ("recipe=demo", "tokens_per_second=-1"), "tokens_per_second is -1"),
        ("bert_pretrain.bench", ("stop",), "bench was asked for 'stop'"),
        ("bert_pretrain.study", ("decay",), "there is no study 'decay'"),
        ("bert_pretrain.finetune", ("task=mrcp",), "there is no task 'mrcp'; did you mean mrpc"),
    ],
)
def test_other_entries_name_what_is_wrong(module: str, options: tuple[str, ...], mentions: str) -> None:
    refused(module, *options, mentions=mentions)


@pytest.mark.parametrize("words", [["plan", "recipe=bert_large_64k_phase1"], ["plan", "--help"], ["pretrain"]])
def test_a_closed_standard_output_gives_no_traceback(tmp_path: Path, shard_dir: Path, words: list[str]) -> None:
    if words == ["pretrain"]:
        words = [*words, *TEST_RECIPE, f"data.dir={shard_dir}", f"run_dir={tmp_path / 'run'}"]
    command = [sys.executable, "-m", f"bert_pretrain.{words[0]}", *words[1:]]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.communicate(timeout=HANGS)[1] == b""
    assert process.returncode == 128 + signal.SIGPIPE
