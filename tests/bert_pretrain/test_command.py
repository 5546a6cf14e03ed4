"""The command ``bert-pretrain``: its help, mistakes in it, paths that Hydra's grammar refuses, folders of recipes."""

import importlib
import math
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from bert_pretrain import cli
from bert_pretrain.completion import completions
from bert_pretrain.config import PretrainConfig
from bert_pretrain.errors import ConfigError
from bert_pretrain.options.command_line import quoted, split_flags
from bert_pretrain.options.config_files import CONFIG_DIR, USER_CONFIGS, choices, groups_of
from bert_pretrain.options.config_loading import load_config, to_dataclass
from bert_pretrain.options.entry_point import _EXTRAS, exit_on_config_error
from bert_pretrain.options.option_schema import options_of
from bert_pretrain.pretrain import _take_processes
from tests.conftest import ROOT

HELPFUL = [*cli.COMMANDS, "bench step", "bench optimizer"]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command in this process; its status, output and error output."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bert-pretrain", *words])
        capsys.readouterr()
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        return (status, *capsys.readouterr())

    return run


def target(command: str):
    """The function behind a command, and what its options are."""
    name, _, kind = command.partition(" ")
    module, _, function = cli.COMMANDS[name][0].partition(":")
    found = importlib.import_module(module)
    function = getattr(found, kind or function)
    return function, getattr(function, "command", None)


@pytest.mark.parametrize("command", HELPFUL)
def test_help_says_what_it_does_and_every_option_with_its_meaning(command: str, typed, capsys) -> None:
    status, page, error = typed(*command.split(), "--help")
    assert (status, error) == (0, "")
    assert f"\n    bert-pretrain {command}" in page or command in ("completion",)
    described = target(command)[1]
    if described is None:
        return
    config_name, schema = described
    for option in options_of(schema):
        assert option.name in page or f"{option.name.partition('.NAME.')[0]}.NAME.*" in page
        assert option.meaning, f"{command}: {option.name} has no meaning"
    for group in groups_of(config_name):
        assert all(choice in page for choice in choices(group, None))
    others = {path.name for path in CONFIG_DIR.iterdir() if path.is_dir()} - {*groups_of(config_name), "cleaning"}
    assert not [name for name in others if f"\n  {name}= " in page]
    with capsys.disabled():
        if os.environ.get("SHOW_HELP"):
            print(f"\n$ bert-pretrain {command} --help\n{page}")


def test_the_commands_own_help_and_version(typed) -> None:
    status, page, _ = typed("--help")
    assert status == 0
    assert all(f"\n  {name}" in page for name in cli.COMMANDS)
    assert typed()[0] == 2
    assert typed("--version")[1].startswith("bert-pretrain ")


MISTAKES = [
    ("pretian recipe=demo", "no command 'pretian'; did you mean pretrain"),
    ("finetun task=sst2", "did you mean finetune"),
    ("pretrain", "no recipe is chosen; give recipe=NAME"),
    ("pretrain recipe=dmeo", "there is no recipe 'dmeo'; did you mean demo"),
    ("pretrain recipe=demo optimizer=nvlmb", "there is no optimizer 'nvlmb'; did you mean nvlamb"),
    ("pretrain recipe=demo optimzer.lr=1", "no option 'optimzer.lr'; did you mean optimizer.lr"),
    ("pretrain recipe=demo global_batch_size=8", "did you mean batch.global_batch_size"),
    ("pretrain recipe=demo batch.globalbatchsize=8", "did you mean batch.global_batch_size"),
    ("pretrain recipe=demo +foo=1", "there is no option 'foo'"),
    ("pretrain recipe=demo seed=many", "seed is 'many'; allowed: a whole number"),
    ("pretrain recipe=demo speed.compile=maybe", "speed.compile is 'maybe'; allowed: true or false or null"),
    (
        "pretrain recipe=demo optimizer.kernel=refrence",
        "allowed: auto, reference, foreach, fused, apex (did you mean ref",
    ),
    ("pretrain recipe=demo run_dir=", "run_dir is empty"),
    ("pretrain recipe=demo ~seed", "an option cannot be removed"),
    ("pretrain recipe=demo lr", "'lr' is not of the form option=value; did you mean optimizer.lr"),
    ("pretrain recipe=demo --config-dri x", "--config-dri is not a flag of this command; did you mean --config-dir"),
    ("pretrain recipe=demo --cfg all", "invalid choice: 'all' (choose from"),
    ("pretrain recipe=demo --config-dir", "argument --config-dir: expected one argument"),
    ("pretrain recipe=demo --processes none", "--processes is 'none'; allowed: a whole number above 0"),
    ("pretrain recipe=demo data.dir=/nowhere", "data.dir is '/nowhere', which is no directory"),
    ("plan recipe=demo device=8", "device is '8'; allowed: auto, cpu, cuda"),
    ("plan recipe=demo gpu=h1oo", "there is no gpu 'h1oo'; did you mean h100"),
    ("prepare corpus=txt out_dir=x", "there is no corpus 'txt'; did you mean text"),
    ("prepare out_dir=x sequence_length=[64]", "did you mean sequence_lengths"),
    ("verify", "not set: dir; give dir=VALUE"),
    ("evaluate model_dir=x", "not set: data.dir; give data.dir=VALUE"),
    ("evaluate model_dir=x data.dirr=y", "did you mean data.dir"),
    ("evaluate model_dir=x data.dir=y device=gpu", "device is 'gpu'; allowed: auto, cpu, cuda"),
    ("evaluate model_dir=x data.dir=y batch.micro_batch_size=0", "batch.micro_batch_size is 0; allowed: 1 or more"),
    ("evaluate model_dir=./x data.dir=y", "model_dir is './x', which is no checkpoint: there is no such folder"),
    ("finetune task=mrcp model_dir=x", "there is no task 'mrcp'; did you mean mrpc"),
    ("convert source=x out_dir=y vocb=z", "did you mean vocab"),
    ("convert source=/nowhere.pt out_dir=y", "source is '/nowhere.pt', which is not there; give a file of PyTorch"),
    ("convert source=x out_dir=y hidden_act=gleu", "hidden_act is 'gleu'; allowed: gelu, gelu_pytorch_tanh, relu"),
    ("study prenormalization scale=toy", "did you mean pre_normalization"),
    ("study decay_degree scale=toy optimzer.lr=1", "did you mean optimizer.lr"),
    ("plan recipe=bert_base_1gpu gpu=h100 plot=/proc/x.png", "the directory of plot, /proc cannot be written"),
    ("bench stop", "did you mean step"),
    ("recipes lst", "did you mean ls"),
    ("completion fish", "allowed: bash, zsh"),
]


@pytest.mark.parametrize(("line", "message"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_gets_one_line_and_the_nearest_right_word(line: str, message: str, typed) -> None:
    status, out, error = typed(*line.split(" "))
    assert (status, out) == (2, "")
    assert error.startswith("error: ")
    assert message in error
    assert len(error.splitlines()) == 1


@given(st.text(alphabet=st.characters(blacklist_categories=("Cs", "Cc")), min_size=1))
def test_any_path_comes_through_hydras_grammar(path: str) -> None:
    value = OverridesParser.create().parse_override(f"run_dir={quoted(path)}").value()
    assert value == (str(Path(path).expanduser()) if path == "~" or path.startswith("~/") else path)


@pytest.mark.parametrize(
    "path", ["/d/epoch=3", "/d/wiki(2020)", "/d/d[1]", "/d/ünï", "/d/it's", "/d/a#1", "/d/a&b", "/d/a,b", "a b", "{x}"]
)
def test_paths_need_no_quotes(path: str) -> None:
    config = load_config("pretrain", ["recipe=demo", f"run_dir={path}", f"data.dir={path}"], PretrainConfig)
    assert (config.run_dir, config.data.dir, config.data.tokenizer) == (path, path, f"{path}/tokenizer")


def test_the_home_directory_null_quotes_and_interpolations_keep_their_meaning() -> None:
    words = ["recipe=demo", "data.dir=~/data", "init_from=null", "run_dir='a b'", "data.tokenizer=${data.dir}/t"]
    config = load_config("pretrain", words, PretrainConfig)
    assert config.data.dir == str(Path.home() / "data")
    assert (config.init_from, config.run_dir, config.data.tokenizer) == (None, "a b", f"{config.data.dir}/t")


def recipe(folder: Path, name: str, text: str = "defaults: [demo]\nrun_dir: runs/mine\n") -> Path:
    (folder / "recipe").mkdir(parents=True, exist_ok=True)
    path = folder / "recipe" / f"{name}.yaml"
    path.write_text(f"# @package _global_\n# A recipe of my own.\n{text}")
    return path


def test_a_users_own_recipes(tmp_path: Path, typed, monkeypatch) -> None:
    recipe(tmp_path, "mine")
    assert "run_dir: runs/mine" in typed("pretrain", "recipe=mine", "--config-dir", str(tmp_path), "--cfg", "job")[1]
    monkeypatch.setenv(USER_CONFIGS, str(tmp_path))
    assert "A recipe of my own." in typed("recipes", "ls")[1]
    assert typed("plan", "recipe=mine")[0] == 0
    assert "did you mean mine" in typed("plan", "recipe=mien")[2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimzer: {lr: 1}\n", "configuration recipe/mine: there is no option 'optimzer'; did you mean optimizer"),
        ("defaults: [demo]\nseed: many\n", "configuration recipe/mine: seed: Value 'many'"),
        ("defaults: [dmeo]\n", "there is no recipe 'dmeo'; did you mean demo"),
        ("defaults: [demo]\nbatch: {global_batch_size: 0}\n", "batch.global_batch_size is 0"),
        ("model: [a\n", "while parsing a flow sequence"),
        ("seed: 1\n", "not set: data.dir, data.sequence_length"),
    ],
)
def test_a_fault_in_a_recipe_is_one_line(text: str, message: str, tmp_path: Path, typed) -> None:
    path = recipe(tmp_path, "mine", text)
    for words in (["plan", "recipe=mine", "--config-dir", str(tmp_path)], ["recipes", "validate", str(path)]):
        status, _, error = typed(*words)
        assert status == 2
        assert message in error
        assert len(error.splitlines()) == 1


def test_bad_folders_of_configurations(tmp_path: Path, typed, monkeypatch) -> None:
    for folder in (tmp_path / "none", tmp_path / "file"):
        (tmp_path / "file").touch()
        assert (
            f"--config-dir is '{folder}', which is not a folder"
            in typed("plan", "recipe=demo", "--config-dir", str(folder))[2]
        )
    monkeypatch.setenv(USER_CONFIGS, "")
    assert f"{USER_CONFIGS} is ''" in typed("plan", "recipe=demo")[2]
    recipe(tmp_path / "twice", "demo")
    status, _, error = typed("plan", "recipe=demo", "--config-dir", str(tmp_path / "twice"))
    assert status == 2
    assert "recipe/demo exists twice" in error


def test_a_folder_that_cannot_be_read(tmp_path: Path, typed, monkeypatch) -> None:
    recipe(tmp_path, "mine")

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)  # root, who runs these tests in CI, may read anything
    status, _, error = typed("plan", "recipe=demo", "--config-dir", str(tmp_path))
    assert status == 2
    assert f"{tmp_path} cannot be read (Permission denied)" in error


def test_recipes_are_copied_and_checked(tmp_path: Path, typed, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, _ = typed("recipes", "copy", "demo", "mine")
    assert status == 0
    assert "recipe=mine --config-dir my_configs" in out
    assert "run_dir: runs/mine" in Path("my_configs/recipe/mine.yaml").read_text()
    valid = typed("recipes", "validate", "my_configs/recipe/mine.yaml")[1]
    assert "my_configs/recipe/mine.yaml is valid: 4,800 steps" in valid
    assert typed("recipes", "copy", "demo", "--config-dir", "new")[0] == 0
    assert Path("new/recipe/my_demo.yaml").exists()
    for words, message in (
        (("copy", "demo", "mine"), "mine.yaml exists"),
        (("copy", "demo", "base 1"), "is not a name"),
        (("copy", "dmeo"), "did you mean demo"),
        (("copy", "demo", "demo_64k"), "one of the program's own"),
        (("validate", "nowhere.yaml"), "nowhere.yaml is not a file"),
    ):
        status, _, error = typed("recipes", *words)
        assert status == 2
        assert message in error


def test_completion() -> None:
    assert completions("bert-pretrain pre") == ["prepare ", "pretrain "]
    assert "recipe=" in completions("bert-pretrain pretrain re")
    assert completions("bert-pretrain pretrain recipe=demo_") == ["demo_64k "]
    assert completions("bert-pretrain plan recipe=demo effic") == ["efficiency_floor="]
    assert completions("bert-pretrain nothing x") == []
    assert completions("bert-pretrain pretrain --conf") == ["--config-dir "]


@pytest.mark.parametrize("flag", ["--config-dir {}", "--config-dir={}"])
def test_completion_knows_the_recipes_of_a_folder(tmp_path: Path, flag: str) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text("# @package _global_\n")
    assert completions(f"bert-pretrain pretrain {flag.format(tmp_path)} recipe=mi") == ["mine "]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_the_completion_script_in_bash() -> None:
    script = (
        f"bert-pretrain() {{ {sys.executable} -c 'from bert_pretrain.cli import main; main()' \"$@\"; }}\n"
        'eval "$(bert-pretrain completion bash)"\n'
        'COMP_LINE="bert-pretrain plan recipe=demo_"; COMP_POINT=${#COMP_LINE}; _bert_pretrain\n'
        'echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["demo_64k"]


def test_processes_are_taken_from_the_words() -> None:
    assert _take_processes(["recipe=demo", "--processes", "4", "seed=1"]) == (4, ["recipe=demo", "seed=1"])
    assert _take_processes(["--processes=2"]) == (2, [])
    assert _take_processes(["recipe=demo"]) == (None, ["recipe=demo"])
    with pytest.raises(ConfigError, match="--processes is ''"):
        _take_processes(["--processes"])
    flags, others = split_flags(["a=1", "-h", "b=2", "--config-dir", "d"])
    assert (flags.help, flags.config_dir, others) == (True, "d", ["a=1", "b=2"])


def test_a_missing_extra_is_one_message(capsys) -> None:
    @exit_on_config_error
    def needs_it() -> None:
        raise ModuleNotFoundError("No module named 'rensa'", name="rensa")

    with pytest.raises(SystemExit, match="2"):
        needs_it()
    assert capsys.readouterr().err == (
        "error: this needs the package rensa, which is not installed: pip install 'bert-pretrain[data]'\n"
    )
    with pytest.raises(ModuleNotFoundError):
        exit_on_config_error(lambda: importlib.import_module("no_such_package"))()


def test_every_package_of_an_extra_is_known() -> None:
    """Whoever names a package in pyproject.toml also names it in the message."""
    imported = {"scikit-learn": "sklearn", "tensorflow-cpu": "tensorflow"}
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, packages in _EXTRAS.items():
        names = {re.split("[>=<]", need)[0] for need in stated[extra]}
        assert set(packages) == {imported.get(name, name) for name in names}


@pytest.mark.parametrize(
    ("command", "extra", "packages"),
    [
        ("prepare corpus=text corpus.path=x out_dir=y", "data", ["sentencex", "rensa", "zstandard", "distributed"]),
        ("show corpus=text corpus.path=x", "data", ["sentencex", "rensa", "zstandard", "distributed"]),
        ("finetune task=sst2 model_dir=x", "finetune", ["seqeval", "scipy"]),
        ("finetune task=sst2 model_dir=x", "finetune", ["accelerate"]),
        ("study pre_normalization scale=toy out_dir=none", "study", ["scipy"]),
    ],
)
def test_a_command_without_its_extra(command: str, extra: str, packages: list[str]) -> None:
    """The packages of the extra are hidden from a process of its own."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({packages}));"
    code = f"{hide} sys.argv[1:] = {command.split()!r}; from bert_pretrain.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.endswith(f"pip install 'bert-pretrain[{extra}]'\n")
    assert len(done.stderr.splitlines()) == 1


@dataclass
class Numbers:
    one: float = 1.0
    without_end: float = field(default=math.inf, metadata={"endless": True})
    many: list[float] = field(default_factory=lambda: [1.0])
    named: dict[str, float] = field(default_factory=lambda: {"a": 1.0})
    count: int = 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"one": math.nan}, "one is nan; allowed: a finite number"),
        ({"one": -math.inf}, "one is -inf"),
        ({"one": 1e300}, "one is 1e+300; allowed: a finite number, up to 1e38"),
        ({"without_end": math.nan}, "without_end is nan"),
        ({"many": [1.0, math.inf]}, "many.1 is inf"),
        ({"named": {"b": math.nan}}, "named.b is nan"),
        ({"count": 1 << 70}, "count is 1180591620717411303424; allowed: a number below 2^62"),
    ],
)
def test_numbers_that_mean_nothing_are_refused_for_every_option(values: dict[str, object], message: str) -> None:
    assert to_dataclass(OmegaConf.create({}), Numbers) == Numbers()
    with pytest.raises(ConfigError, match=re.escape(message)):
        to_dataclass(OmegaConf.create(values), Numbers)


def test_an_interrupt_ends_a_command_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    @exit_on_config_error
    def command() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit, match="130"):
        command()
    assert capsys.readouterr().err == "interrupted\n"
