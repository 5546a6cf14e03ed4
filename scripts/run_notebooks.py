"""Executes the notebooks and writes their outputs into them.

    python scripts/run_notebooks.py notebooks/own_bert.ipynb notebooks/domain_bert.ipynb

Each runs in an empty folder of its own, with the commands of this Python's environment. Paths of this machine are cut
from the outputs. Needs nbclient and ipykernel.
"""

import hashlib
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from repository_root import ROOT
from results_file import argument_parser

CHECK = "assert not get_ipython().user_ns.get('_exit_code'), 'the command failed'"
"""Appended to a cell with commands while it runs: IPython itself goes on after one that fails."""


def execute(path: Path, folder: Path, **parameters: object) -> Any:
    """The notebook at ``path`` after a run in ``folder``, with its own code cells and the new outputs.

    ``parameters`` are assigned at the end of the cell tagged ``parameters``, as papermill does. Raises
    ``nbclient.exceptions.CellExecutionError`` if a cell or a command of a cell fails.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    written = [cell.source for cell in notebook.cells]
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            cell.source += "".join(f"\n{name} = {value!r}" for name, value in parameters.items())
        if re.search(r"^!", cell.source, re.MULTILINE):
            cell.source += f"\n{CHECK}"
    added = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": search_path(),
        "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm asks for ipywidgets
    }
    place = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=None, coalesce_streams=True, resources=place)
    client.execute(env={**os.environ, **added})
    for cell, source in zip(notebook.cells, written, strict=True):
        cell.source = source
        cell.metadata.pop("execution", None)  # times of day
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                output.text = shown(output.text, folder)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("text", "some").strip()]
    notebook.metadata["outputs_of"] = fingerprint(notebook)
    return notebook


def fingerprint(notebook: dict[str, Any]) -> str:
    """A hash of the code cells, which a notebook keeps with the outputs that they gave."""
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()[:16]


def search_path() -> str:
    """``PYTHONPATH`` with this repository first, for kernels and commands in another folder."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def shown(text: str, folder: Path) -> str:
    """What a terminal shows of ``text`` at the end: no progress bars, no colours, no name of ``folder``."""
    plain = re.sub(r"\x1b\[[\d;]*[A-Za-z]", "", text.replace("\r\n", "\n"))
    lines = (line.rpartition("\r")[2].rstrip() for line in plain.replace(f"{folder.resolve()}/", "").split("\n"))
    kept = "\n".join(line for line in lines if not re.search(r"\d%\|", line))
    return re.sub(r"\n{2,}", "\n", kept).strip("\n") + "\n"


def main() -> None:
    """Run the notebooks named on the command line."""
    import nbformat

    parser = argument_parser(__doc__)
    parser.add_argument("notebooks", nargs="+", type=Path)
    for path in parser.parse_args().notebooks:
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(execute(path, Path(folder)), path)


if __name__ == "__main__":
    main()
