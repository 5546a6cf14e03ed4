"""The layers of the design, the absence of cycles, and the size of files and functions."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.draw_imports import (
    LAYERS,
    PREPARATION_LAYERS,
    import_graph,
    imports,
    module_name,
    package_of,
    product_files,
)
from tests.conftest import ROOT

FOR_DATA_PREP = LAYERS[0] | {
    f"bert_pretrain.data.{name}"
    for name in ("masking", "masking_rule", "saved_set", "shard_cache", "shard_directory", "shards", "tokenizer_files")
}
PRODUCT = sorted([*ROOT.glob("bert_pretrain/**/*.py"), *ROOT.glob("data_prep/**/*.py"), *ROOT.glob("scripts/*.py")])
PACKAGES = product_files()
ENVIRONMENT = {
    "bert_pretrain.options.config_files",  # BERT_PRETRAIN_CONFIGS
    "bert_pretrain.files.directory_lock",  # the job's number
    "bert_pretrain.distributed.device",
    "bert_pretrain.distributed.world",
    "bert_pretrain.doctor.system",  # prints those that matter
    "bert_pretrain.launch_environment",  # torchrun's variables
    "bert_pretrain.trackers.trackio",  # whether its server gets the rows
    "bert_pretrain.trackers.wandb",  # WANDB_API_KEY
    "scripts.bench_data",  # lets Python keep compiled modules, as an installation does
    "scripts.prove_kills",  # stands in for torchrun
    "scripts.prove_numbers",  # sets threads for child processes
    "scripts.prove_trackers",  # trackio's folder
    "scripts.run_notebooks",  # the kernel finds this program first
}


def layer(package: str) -> int:
    layers = PREPARATION_LAYERS if package.startswith("data_prep") else LAYERS
    return next(level for level, members in enumerate(layers) if package in members)


def test_every_package_has_a_layer() -> None:
    assert {package_of(module_name(path)) for path in PACKAGES} == set().union(*LAYERS, *PREPARATION_LAYERS)


@pytest.mark.parametrize("path", PACKAGES, ids=module_name)
def test_imports_go_down(path: Path) -> None:
    here = module_name(path)
    if here in ("bert_pretrain.cli", "bert_pretrain.completion"):  # the command's table names modules of both
        return
    for imported in imports(path):
        if here.startswith("data_prep") and not imported.startswith("data_prep"):
            assert {imported, package_of(imported)} & FOR_DATA_PREP, imported
            continue
        assert imported.split(".")[0] == here.split(".")[0], f"{here} imports {imported}"
        assert layer(package_of(imported)) <= layer(package_of(here)), f"{here} imports {imported}"


def test_no_cycle_of_packages_or_modules() -> None:
    modules = {module_name(path): imports(path) for path in PACKAGES}
    for graph in (modules, import_graph()):
        done: set[str] = set()

        def visit(node: str, trail: tuple[str, ...], graph=graph, done=done) -> None:
            assert node not in trail, " -> ".join((*trail, node))
            if node not in done:
                for imported in graph.get(node, ()):
                    visit(imported, (*trail, node))
                done.add(node)

        for node in graph:
            visit(node, ())


@pytest.mark.parametrize("path", PRODUCT, ids=module_name)
def test_files_and_functions_are_short(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= 300
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, node.name


@pytest.mark.parametrize("path", PRODUCT, ids=module_name)
def test_forbidden_ways(path: Path) -> None:
    source = path.read_text()
    assert path.stem not in {"utils", "helpers", "common", "misc"}
    assert "_target_" not in source
    if module_name(path) not in ENVIRONMENT:
        assert not re.search(r"\benviron\b", source)


def loaded(code: str) -> set[str]:
    """The packages that are loaded after ``code`` in a new process."""
    print_modules = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; {print_modules}"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return set(done.stdout.split())


def test_the_help_of_a_command_loads_no_torch_and_no_compiler() -> None:
    from bert_pretrain.cli import COMMANDS

    modules = sorted({target.partition(":")[0] for target, _ in COMMANDS.values()})
    found = loaded("import " + ", ".join(["bert_pretrain.cli", "bert_pretrain.data.shards", *modules]))
    assert not found & {"torch", "transformers", "datasets", "wandb", "distributed", "numba", "llvmlite"}, found
    assert not found & {"rensa", "py3langid", "mwparserfromhell", "sentencex", "zstandard"}, found  # the extra "data"


def test_the_optimizer_needs_torch_alone() -> None:
    found = loaded("from bert_pretrain.optim import NVLamb")
    assert not found & {"transformers", "datasets", "wandb", "distributed", "dask", "numba", "hydra", "h5py"}, found


def test_the_drawing_of_the_imports_is_current() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/draw_imports.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
