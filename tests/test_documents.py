"""What the documents print works: quick commands are run, long ones composed; links, options and files exist."""

import argparse
import functools
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch.distributed.run as torchrun
import yaml
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertForPreTraining, BertForSequenceClassification, BertTokenizerFast

import data_prep  # noqa: F401  a script finds it loaded, as if installed
from bert_pretrain import cli
from bert_pretrain.bench.__main__ import BENCHMARKS
from bert_pretrain.config import PretrainConfig
from bert_pretrain.options.command_line import split_flags
from bert_pretrain.options.config_files import user_config_dir
from bert_pretrain.options.config_loading import load_config
from bert_pretrain.options.option_schema import ANY_NAME, options_of
from bert_pretrain.study.__main__ import with_run_options
from bert_pretrain.study.options import StudyConfig
from tests.conftest import ROOT

GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [*GUIDES, ROOT / "RESULTS.md", ROOT / "CHANGELOG.md"]
QUICK = ("recipes", "completion", "plan")  # run for real; the others are composed
TAKES = {
    "demo.sh": ("pretrain", 0),
    "node.sh": ("pretrain", 4),
    "pretrain_node.sh": ("pretrain", 0),
    "pretrain_nodes.sh": ("pretrain", 3),
    "slurm_pretrain.sbatch": ("pretrain", 0),
    "slurm_prepare.sbatch": ("prepare", 0),
    "bench_padding.py": ("pretrain", 2),
    "bench_save.py": ("pretrain", 3),
    "soak.py": ("pretrain", 2),
    "kill_data.py": ("prepare", 2),
}
"""Scripts that hand options to a command: to which, and how many words are before the options."""


class WrongCommand(Exception):
    """A command in a document that cannot work."""


def demand(holds: object, message: str) -> None:
    if not holds:
        raise WrongCommand(message)


# Reading the pages


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of each fenced block."""
    return re.findall(r"^```(\w*)[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command in ``bash`` and ``console`` blocks."""
    for language, body in blocks(text):
        lines = body.replace("\\\n", " ").splitlines()
        if language == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        if language in ("bash", "console"):
            yield from (words for line in lines if (words := shlex.split(line, comments=True)))


def recorded_commands(text: str) -> Iterator[list[str]]:
    """The commands of RESULTS, of which some are told in words: ``command; before: other options``."""
    for command in re.findall(r"commit \w+: `([^`]+)`", text):
        for part in re.split(r"; | \| ", command):
            if re.match(r"([A-Z_]+=\S+ |chrt |sudo )*(\S*python |make |scripts/|bert-pretrain )", part):
                yield shlex.split(part)


def inline_code(text: str) -> list[str]:
    """What stands between single backticks outside of blocks."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]


def slugs(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub forms them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# Checking commands


def check(words: list[str]) -> None:
    """Run or compose a command. Raises ``WrongCommand``, ``ConfigError``, ``ImportError`` or ``SystemExit``."""
    root_on_path = "PYTHONPATH=." in words
    while words and (re.match(r"[A-Z_]+=", words[0]) or words[0] == "sudo"):
        words = words[1:]
    if words[:1] == ["chrt"]:
        words = words[3:]
    program, rest = Path(words[0]), words[1:]
    if program.parts[0] in ("scripts", "docker", ".ci") and len(program.parts) > 1:
        check_script(words[0], rest)
    elif program.name == "python":
        check_python(rest, root_on_path)
    else:
        demand(program.name in PROGRAMS, f"no way to check {program}")
        PROGRAMS[program.name](rest)


def check_bert_pretrain(words: list[str]) -> None:
    if words[0] in QUICK or words[0].startswith("-") or {"--help", "--cfg"} & set(words):
        run_bert_pretrain(words)
    else:
        demand(words[0] in cli.COMMANDS, f"bert-pretrain has no command {words[0]}")
        module, _, function = cli.COMMANDS[words[0]][0].partition(":")
        compose(getattr(import_module(module), function), words[1:])


def run_bert_pretrain(words: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["bert-pretrain", *words])
        try:
            cli.main()
        except SystemExit as left:
            demand(not left.code, f"bert-pretrain {words} exits with {left.code}")


def compose(function: Callable, words: list[str]) -> None:
    """Compose the options of a command's ``function``. A value written ``...`` is left to the reader."""
    if function is BENCH:
        demand(words[0] in BENCHMARKS, f"no benchmark {words[0]}")
        function, words = BENCHMARKS[words[0]], words[1:]
    if function is STUDY and "=" not in words[0]:
        words = with_run_options([f"study={words[0]}", *words[1:]])
    if "--processes" in words:
        at = words.index("--processes")
        demand(int(words[at + 1]) > 0, "processes")
        words = words[:at] + words[at + 2 :]
    words = ["live=true" if word == "--live" else word for word in words]
    config_name, schema = function.command  # type: ignore[attr-defined]
    names = {option.name for option in options_of(schema)}
    for word in words:
        demand(not word.endswith("=...") or word.removesuffix("=...") in names, f"no option {word}")
    flags, options = split_flags([word for word in words if not word.endswith("=...")])
    config = load_config(config_name, options, schema, user_config_dir(flags.config_dir))
    if isinstance(config, StudyConfig):
        load_config("pretrain", [f"recipe={config.chosen.recipe}", *config.run_options], PretrainConfig)


BENCH = import_module("bert_pretrain.bench.__main__").main
STUDY = import_module("bert_pretrain.study.__main__").main


def check_python(words: list[str], root_on_path: bool = False) -> None:
    if words[0] != "-m":
        check_script(words[0], words[1:], root_on_path)
    elif words[1] == "pytest":
        demand(all((ROOT / word).exists() for word in words[2:] if word.startswith("tests/")), f"{words}")
    elif words[1] == "bert_pretrain.cli":
        check_bert_pretrain(words[2:])
    elif words[1] == "bert_pretrain.distributed.launch":
        check_torchrun(words[2:])
    else:
        compose(entry_of(words[1]), words[2:])


def entry_of(module: str) -> Callable:
    """The function behind ``python -m module``."""
    spec = find_spec(module)
    if spec is None:
        raise WrongCommand(f"no module {module}")
    main = import_module(f"{module}.__main__" if spec.submodule_search_locations else module).main
    demand(main is BENCH or hasattr(main, "command"), f"{module} is no command")
    return main


def check_torchrun(words: list[str]) -> None:
    arguments = torchrun.get_args_parser().parse_args(words)
    demand(arguments.module, "torchrun without -m")
    check_python(["-m", arguments.training_script, *arguments.training_script_args])


def check_script(name: str, words: list[str], root_on_path: bool = False) -> None:
    path = ROOT / name
    demand(path.is_file(), f"no file {name}")
    if path.suffix == ".py":
        check_python_script(path, words, root_on_path)
    if name == "docker/run.sh":
        check(words)
    elif path.name == "slurm_two_phases.sh":
        options, *phases = " ".join(words).split(" -- ")
        demand(len(phases) == 2 and options.startswith("--"), "options -- phase 1 -- phase 2")
        for phase in phases:
            check_bert_pretrain(["pretrain", *phase.split()])
    elif path.name in TAKES:
        command, before = TAKES[path.name]
        given = [*(["out_dir=x"] if path.name == "kill_data.py" else []), *words[before:]]
        given += ["recipe=demo"] if path.name == "demo.sh" else []
        for part in " ".join(given).split(" -- "):
            check_bert_pretrain([command, *part.split(" ")])


def check_python_script(path: Path, words: list[str], root_on_path: bool) -> None:
    """Import the script, and parse its arguments where it uses argparse."""
    script = imported_script(path, root_on_path)
    if "argparse" not in path.read_text():
        return

    class ParsedError(Exception):
        pass

    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser: argparse.ArgumentParser, *given: object) -> None:
        parse(parser, *given)  # type: ignore[call-overload]
        raise ParsedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [path.name, *words])
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
        with pytest.raises(ParsedError):
            script.main()


@functools.cache
def imported_script(path: Path, root_on_path: bool = False) -> ModuleType:
    """A script, imported as ``python scripts/NAME.py`` would: both packages installed, the repository not on the path.

    ``root_on_path``: as with ``PYTHONPATH=.``.
    """
    loaded, path_before = set(sys.modules), list(sys.path)
    beside = {script.stem for script in path.parent.glob("*.py")} | {"tests"}
    # What another test of this process has imported would hide an import that fails in a new one.
    imported_before = {name: sys.modules.pop(name) for name in loaded if name.split(".")[0] in beside}
    root = [str(ROOT)] if root_on_path else []
    sys.path[:] = [
        str(path.parent),
        *root,
        *(p for p in path_before if p and not (Path(p) / "pyproject.toml").exists()),
    ]
    spec = spec_from_file_location(f"script_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)  # dataclasses look there
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        ours = {"bert_pretrain", "data_prep"} | beside
        missing = str(error.name).partition(".")[0]
        if missing in ours or find_spec(missing):
            raise  # any other is a package that only this script needs, and that is not installed
    finally:
        sys.path[:] = path_before
        for name in [name for name in sys.modules if name.split(".")[0] in beside]:
            sys.modules.pop(name)
        sys.modules.update(imported_before)
    return module


def check_make(words: list[str]) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    demand({word for word in words if "=" not in word} <= set(targets), f"make {words}; there are {targets}")


def check_install(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        for named in re.findall(r"\[([\w,]+)\]$", word):
            demand(set(named.split(",")) <= set(extras), f"extras {named}")
        if word.startswith("torch"):
            demand(word in (ROOT / "requirements.lock").read_text().splitlines(), f"{word} is not that of the lock")


def check_sbatch(words: list[str]) -> None:
    script = next((i for i, word in enumerate(words) if not word.startswith("--")), len(words) - 1)
    check_script(words[script], words[script + 1 :])


def check_docker(words: list[str]) -> None:
    demand(words[0] == "build" and (ROOT / words[words.index("-f") + 1]).is_file(), f"docker {words}")


def make_folder(words: list[str]) -> None:
    Path(words[-1]).mkdir(parents=True, exist_ok=True)


def check_eval(words: list[str]) -> None:
    (inner,) = re.findall(r"^\$\((.+)\)$", words[0])
    check(shlex.split(inner))


def check_source(words: list[str]) -> None:
    demand(words == [".venv/bin/activate"], f"source {words}")


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "bert-pretrain": check_bert_pretrain,
    "torchrun": check_torchrun,
    "make": check_make,
    "pip": check_install,
    "pipx": check_install,
    "uv": check_install,
    "sbatch": check_sbatch,
    "docker": check_docker,
    "mkdir": make_folder,
    "eval": check_eval,
    "source": check_source,
}


# Tests


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_every_command_of_a_page_works(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, in their order, with the recipes that the page shows."""
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    for language, body in blocks(text):
        if language == "yaml":
            (target,) = re.findall(r"^# (\S+\.yaml)", body, re.MULTILINE)
            make_folder([str(Path(target).parent)])
            Path(target).write_text(body)
    for words in commands(text):
        check(words)


def test_a_script_is_imported_as_in_a_new_process() -> None:
    for name in ("results_file", "tests.conftest"):
        import_module(name)  # puts the repository on the path once, and not again
    before = dict(sys.modules)
    imported_script.__wrapped__(ROOT / "scripts" / "prove_kills.py")
    assert all(sys.modules[name] is module for name, module in before.items())


def test_every_command_of_the_results_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = list(recorded_commands((ROOT / "RESULTS.md").read_text()))
    assert len(found) > 20
    for words in found:
        check(words)


@pytest.mark.parametrize(
    "command",
    [
        "bert-pretrain pretain recipe=demo",
        "bert-pretrain pretrain recipe=dmeo",
        "bert-pretrain pretrain recipe=demo batch.gobal_batch_size=64",
        "bert-pretrain pretrain recipe=demo optimizer=adamw optimizer.phi_min=1",
        "bert-pretrain pretrain recipe=demo batch.micro_batch_size=0",
        "bert-pretrain pretrain recipe=demo bach.size=...",
        "bert-pretrain plan recipe=demo devices=none",
        "bert-pretrain recipes list",
        "bert-pretrain bench stp recipe=demo",
        "bert-pretrain study pre_normalisation scale=toy",
        "bert-pretrain study optimizers scale=toy batch.gobal_batch_size=64",
        "bert-pretrain finetune task=sst3 model_dir=x",
        "bert-pretrain verify",
        "python -m bert_pretrain.nothing recipe=demo",
        "python -m bert_pretrain.data recipe=demo",
        "python scripts/no_such_script.py",
        "python scripts/soak.py 1 r.json recipe=dmeo",
        "torchrun --standalone --nprocs=2 -m bert_pretrain.pretrain recipe=demo",
        "torchrun --standalone --nproc-per-node=2 -m bert_pretrain.pretrain recipe=dmeo",
        "sbatch --nodes=2 scripts/slurm_pretrain.sbatch recipe=dmeo",
        "sbatch --nodes=2 scripts/slurm.sbatch recipe=demo",
        "scripts/pretrain_nodes.sh 2 0 host recipe=dmeo",
        "scripts/slurm_two_phases.sh --nodes=2 -- recipe=demo",
        "docker build -f docker/Dockerfile.gpu .",
        "docker/run.sh scripts/pretrain_node.sh recipe=dmeo",
        "make pretran",
        "pip install '.[everything]'",
        "pip install torch==1.0",
        'eval "$(bert-pretrain completion fish)"',
        "frobnicate",
    ],
)
def test_a_wrong_command_is_found(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((WrongCommand, ValueError, ImportError, AttributeError, SystemExit)):
        check(shlex.split(command))


def test_a_script_that_needs_the_repository_on_the_path_is_found(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("from tests.conftest import make_shards\n")
    with pytest.raises(ModuleNotFoundError, match="tests"):
        imported_script(tmp_path / "script.py")


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_blocks_say_what_they_are(page: Path) -> None:
    """A block of unknown language would hide its commands from the tests above."""
    languages = {language for language, _ in blocks(page.read_text())}
    assert languages <= {"bash", "console", "python", "yaml", "text", "mermaid"}
    assert len(re.findall(r"^```", page.read_text(), re.MULTILINE)) == 2 * len(blocks(page.read_text()))


@pytest.mark.parametrize(
    "page", [page for page in GUIDES if "```python" in page.read_text()], ids=lambda page: page.stem
)
def test_python_in_the_documents_runs(page: Path, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folders)
    for language, body in blocks(page.read_text()):
        if language == "python":
            exec(compile(body, page.name, "exec"), {"__name__": "__main__"})


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ``my-bert`` is, a model as export writes it, and a model that was fine-tuned from it."""
    place = tmp_path_factory.mktemp("documents")
    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "another", "a", "sentence", "##s", "what", "is"]
    (place / "vocab.txt").write_text("\n".join(words))
    wordpiece = BertWordPieceTokenizer(str(place / "vocab.txt"), lowercase=True)
    tokenizer = BertTokenizerFast(tokenizer_object=wordpiece._tokenizer)
    for name, model in (
        ("my-bert", BertForPreTraining),
        ("runs/finetune/sst2/seed_1/model", BertForSequenceClassification),
    ):
        model(config).save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    return place


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), target
        assert not anchor or anchor in slugs(linked.read_text()), target


def known_options() -> set[str]:
    schemas = [getattr(function, "command", (None, None))[1] for function in BENCHMARKS.values()]
    for target, _ in cli.COMMANDS.values():
        module, _, function = target.partition(":")
        schemas.append(getattr(getattr(import_module(module), function), "command", (None, None))[1])
    return {option.name for schema in schemas if schema is not None for option in options_of(schema)}


def wrong_names(codes: list[str]) -> list[str]:
    """Of pieces of inline code, those that name an option, file, command or module that does not exist."""
    options = known_options()
    groups = {name.partition(".")[0] for name in options if "." in name}
    wrong = []
    for code in codes:
        word = code.split()[0] if code.split() else ""
        name = word.partition("=")[0]
        if re.fullmatch(r"[a-z_]+(\.\w+)+", name) and name.partition(".")[0] in groups:
            pattern = re.escape(name).replace(ANY_NAME, r"[^.]+") + rf"(\.{ANY_NAME})?"  # also a mapping itself
            known = any(re.fullmatch(pattern, option) for option in options)
            wrong += [] if known else [code]
        elif re.fullmatch(r"(configs|scripts|docker|docs|tests|bert_pretrain|data_prep)/[a-z0-9_./-]*", code):
            wrong += [] if (ROOT / code).exists() else [code]
        elif re.match(r"bert-pretrain [a-z]", code):
            wrong += [] if code.split()[1] in cli.COMMANDS else [code]
        elif re.fullmatch(r"(bert_pretrain|data_prep)(\.[a-z_]+)+", code):
            wrong += [] if find_spec(code) else [code]
    return wrong


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_names_in_the_text_exist(page: Path) -> None:
    assert not wrong_names(inline_code(page.read_text()))


def test_a_wrong_name_is_found() -> None:
    wrong = ["optimizer.shared=true", "configs/none.yaml", "bert-pretrain prepair", "bert_pretrain.nowhere"]
    right = [
        "optimizer.sharded=true",
        "mix.NAME.path",
        "data.mix_weights",
        "configs/prepare.yaml",
        "bert-pretrain show",
        "bert_pretrain.optim",
    ]
    assert wrong_names([*wrong, *right]) == wrong


def test_the_readme_is_short_and_its_picture_small() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    assert (ROOT / "docs/images/run.png").stat().st_size < 150_000


def test_the_map_of_the_code_names_files_that_exist() -> None:
    here = {path.name for folder in ("bert_pretrain", "data_prep", "scripts") for path in (ROOT / folder).rglob("*.py")}
    named = set(re.findall(r"(?<![\w*])\w+\.py\b", (ROOT / "CONTRIBUTING.md").read_text()))
    tests = {path.name for path in (ROOT / "tests").rglob("*.py")}
    assert len(named) > 15
    assert not named - here - tests


def test_every_python_that_the_package_allows_is_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    versions = jobs["tests"]["strategy"]["matrix"]["python"]
    assert project["requires-python"] == f">={versions[0]},<3.{int(versions[-1][2:]) + 1}"
    assert {"run": ".ci/run"} in jobs["tests"]["steps"]
