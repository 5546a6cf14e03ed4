"""Draw which package imports which, as a Mermaid graph in CONTRIBUTING.md. ``--check`` only compares."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- imports: python scripts/draw_imports.py -->", "<!-- end of imports -->"

# Highest first; a module imports from its own layer or from lower ones.
LAYERS = [
    {
        "control_group",
        "errors",
        "files",
        "html_page",
        "jit",
        "launch_environment",
        "options",
        "output",
        "program",
        "threads",
    },
    {"data"},
    {"model", "optim"},
    {"checkpoint", "distributed", "trackers"},
    {"training"},
    {"config", "same_run"},
    {"hub", "plan", "report"},
    {"build", "run", "starting"},
    {"bench", "doctor", "finetune", "study"},
    {"pretrain", "cli", "recipes", "completion"},
]
LAYERS = [{f"bert_pretrain.{name}" for name in layer} for layer in LAYERS]
PREPARATION_LAYERS = [
    {"array_files", "options"},
    {"sources"},
    {"text"},
    {"samples"},
    {"corpus"},
    {"corpus_check"},
    {"engine"},
    {"prepared_tokenizer"},
    {"preparation", "random_documents", "verify"},
    {"prepare", "report", "show"},
]
PREPARATION_LAYERS = [{f"data_prep.{name}" for name in layer} for layer in PREPARATION_LAYERS]
"""The layers of data_prep, the lowest first, as above."""


def module_name(path: Path) -> str:
    """The dotted name of the module in ``path``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def product_files() -> list[Path]:
    """The files of both packages but for their empty top levels."""
    files = sorted([*ROOT.glob("bert_pretrain/**/*.py"), *ROOT.glob("data_prep/**/*.py")])
    return [path for path in files if module_name(path) not in ("bert_pretrain", "data_prep")]


def package_of(module: str) -> str:
    """The node of the graph that ``module`` belongs to: a package, or a module at the top level."""
    return ".".join(module.split(".")[:2])


def imports(path: Path) -> set[str]:
    """The modules of this repository that a file imports, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    names = {module_name(other) for other in product_files()}
    return {name for name in found if name in names and name != module_name(path)}


def import_graph() -> dict[str, set[str]]:
    """By package, the packages that it imports."""
    graph: dict[str, set[str]] = {}
    for path in product_files():
        here = package_of(module_name(path))
        graph.setdefault(here, set()).update(package_of(name) for name in imports(path))
        graph[here].discard(here)
    return graph


def drawing() -> str:
    """The graph as Mermaid text; arrows that follow from others are left out."""
    graph = import_graph()
    lowest = LAYERS[0]
    lines = ["```mermaid", "graph TD"]
    for package in sorted(graph):
        direct = graph[package] - lowest
        implied = set().union(*(_reachable(graph, other) for other in direct)) if direct else set()
        if package not in lowest:
            lines += [f"  {package} --> {other}" for other in sorted(direct - implied)]
    return "\n".join([*lines, "```"])


def _reachable(graph: dict[str, set[str]], package: str) -> set[str]:
    found: set[str] = set()
    waiting = list(graph.get(package, ()))
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += graph.get(name, ())
    return found


def main() -> None:
    """Write the drawing between its marks, or compare with ``--check``."""
    path = ROOT / "CONTRIBUTING.md"
    text = path.read_text(encoding="utf-8")
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    new = f"{text[:begin]}\n\n{drawing()}\n\n{text[end:]}"
    if "--check" in sys.argv[1:]:
        sys.exit(None if new == text else f"{path.name} shows other imports: python scripts/draw_imports.py")
    path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
