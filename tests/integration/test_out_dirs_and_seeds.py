"""Every command that takes a seed or an output directory: what no generator takes, or no directory is, is one line."""

import importlib
from pathlib import Path

import pytest

from bert_pretrain import cli
from bert_pretrain.options.option_schema import options_of
from tests.conftest import TEST_RECIPE, run_module, succeed

GIVEN = {
    "prepare": ("corpus=text", "corpus.path=x", "out_dir=o"),
    "finetune": ("task=sst2", "model_dir=m"),
    "pretrain": ("recipe=demo",),
    "plan": ("recipe=demo",),
    "doctor": ("recipe=demo",),
    "bench step": ("recipe=demo",),
    "study": ("optimizers", "scale=toy"),
}
"""Words without which a command is not complete."""


def commands() -> dict[str, type]:
    """The schema of every command that has options."""
    found = {}
    for name, (target, _) in cli.COMMANDS.items():
        module, _, function = target.partition(":")
        loaded = importlib.import_module(module)
        for kind, entry in getattr(loaded, "BENCHMARKS", {"": getattr(loaded, function)}).items():
            if hasattr(entry, "command"):
                found[f"{name} {kind}".strip()] = entry.command[1]
    return found


SEEDS = [
    (name, option.name.replace("NAME", "toy"), option.type)
    for name, schema in commands().items()
    for option in options_of(schema)
    if option.name.rpartition(".")[2] in ("seed", "seeds", "tuning_seed")
]


def test_the_commands_with_a_seed_are_known() -> None:
    assert {name for name, *_ in SEEDS} == {"show", *GIVEN}
    assert ("study", "scales.toy.corpus.seed", "integer") in SEEDS


@pytest.mark.parametrize(("command", "option", "kind"), SEEDS, ids=[f"{name} {option}" for name, option, _ in SEEDS])
def test_a_seed_that_no_generator_takes_is_one_line(
    command: str, option: str, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    largest = 2**32 if command == "finetune" else 2**62
    for seed in (10**19 + 1, 2**63, largest, -1):
        value = f"[{seed}]" if kind.startswith("list") else str(seed)
        monkeypatch.setattr(
            "sys.argv", ["bert-pretrain", *command.split(), *GIVEN.get(command, ()), f"{option}={value}"]
        )
        with pytest.raises(SystemExit) as exited:
            cli.main()
        error = capsys.readouterr().err
        assert exited.value.code == 2, error
        named = option.removeprefix("scales.toy.")
        assert f"{named} is {seed}; allowed: 0 or more and below 2^{32 if command == 'finetune' else 62}" in error
        assert error.count("\n") == 1


def test_the_largest_seed_trains(tmp_path: Path, shard_dir: Path) -> None:
    words = (f"data.dir={shard_dir}", f"run_dir={tmp_path}", f"seed={2**62 - 1}")
    succeed("bert_pretrain.pretrain", *TEST_RECIPE, *words, "schedule.total_steps=2")


@pytest.mark.parametrize("kind", ["file", "dangling", "below_a_file"])
@pytest.mark.parametrize(
    "words",
    [
        ("bert_pretrain.study", "optimizers", "scale=toy", "out_dir={}"),
        ("data_prep.prepare", "corpus=text", "corpus.path=README.md", "vocab_size=300", "out_dir={}"),
        ("bert_pretrain.pretrain", *TEST_RECIPE, "data.dir={shards}", "run_dir={}"),
    ],
    ids=lambda words: words[0],
)
def test_an_output_directory_that_is_none(tmp_path: Path, shard_dir: Path, words: tuple[str, ...], kind: str) -> None:
    place = tmp_path / "out"
    place.symlink_to("nowhere") if kind == "dangling" else place.write_text("mine")
    given = place / "below" if kind == "below_a_file" else place
    module, *rest = (word.replace("{shards}", str(shard_dir)).replace("{}", str(given)) for word in words)
    done = run_module(module, *rest)
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    found = "a link to nowhere, which is not there" if kind == "dangling" else "a file"
    assert found in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
