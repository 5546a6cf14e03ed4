"""The order of dependence of the design, and the size of its rooms, as code."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

# A module imports from its own floor or from floors below it.
FLOORS = [
    {"errors", "preemption", "step_result", "step_weights", "threads"},
    {"structured", "shards", "sample_order", "masking", "pulse", "roll_call"},
    {"dropout", "vocabulary_loss", "encoder", "batch_plan", "batches", "distributed", "model", "flops", "machine"},
    {"numerics", "precision", "checkpoint_files"},
    {"data", "communication", "compiling", "micro_batch_size"},
    {"loader", "optim", "checkpoint", "checkpoint_writer", "metrics", "remask", "plots"},
    {"evaluation", "train", "config", "scaling"},
    {"plan", "report"},
    {"pretrain", "launch", "export", "fill_mask"},
    {"bench", "doctor", "finetune", "study"},
]
FOR_DATA_PREP = {
    "bert_pretrain.errors",
    "bert_pretrain.config_loading",
    "bert_pretrain.data.shards",
    "bert_pretrain.data.masking",
}
PRODUCT = sorted([*ROOT.glob("bert_pretrain/**/*.py"), *ROOT.glob("data_prep/*.py"), *ROOT.glob("scripts/*.py")])


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    names = {module_name(other) for other in PRODUCT}
    return {name for name in found if name in names and name != module_name(path)}


def floor(module: str) -> int:
    room = module.split(".")[1]
    return next(level for level, rooms in enumerate(FLOORS) if room in rooms)


def test_every_room_has_a_floor() -> None:
    rooms = {module_name(path).split(".")[1] for path in PRODUCT if module_name(path).startswith("bert_pretrain.")}
    assert rooms == set.union(*FLOORS)


@pytest.mark.parametrize("path", [path for path in PRODUCT if path.parts[-2] != "scripts"], ids=module_name)
def test_imports_go_down(path: Path) -> None:
    here = module_name(path)
    for imported in imports(path):
        if here.startswith("data_prep"):
            assert imported.startswith("data_prep") or imported in FOR_DATA_PREP | {"bert_pretrain"}, imported
        elif "." in here and imported != "bert_pretrain":
            assert imported.startswith("bert_pretrain."), imported
            assert floor(imported) <= floor(here), f"{here} imports {imported}"


def test_there_is_no_circle() -> None:
    graph = {module_name(path): imports(path) for path in PRODUCT}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in done:
            for imported in graph[module]:
                visit(imported, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", PRODUCT, ids=module_name)
def test_rooms_are_small(path: Path) -> None:
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
    if module_name(path) not in {
        "bert_pretrain.distributed.world",
        "scripts.prove_kills",
    }:  # stands in for torchrun
        assert not re.search(r"\benviron\b", source)


def test_shards_and_data_preparation_do_not_load_torch() -> None:
    code = (
        "import bert_pretrain.data.shards, data_prep.prepare, data_prep.verify, sys; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
