"""Whole steps on fake CUDA tensors: every recipe with every optimizer, kernel and precision, on a CPU build of torch.

    python scripts/prove_fake_cuda.py cpu_DATE_fake_cuda.json [--recipes demo,domain]

Each cell is a run of the trainer with the recipe's options, but one layer and four steps of two micro-batches. It
passes if every tensor is on the device, the host reads nothing in a step but the numbers of the step before, and
nothing is left over that grows from step to step. Otherwise the cell names the reason. Writes scripts/results/.
"""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

from repository_root import ROOT
from results_file import argument_parser, write_result

sys.path.insert(0, str(ROOT))

from tests.fake_cuda import stand_in

KERNELS = ("foreach", "fused", "reference", "apex")
OWN = ("lars", "adamw", "adam", "sgd")
"""Optimizers with one implementation."""
PRECISIONS = ("bf16", "fp16", "fp32")
REASONS = {
    "the host waits for the device: a number is read": "reads at every layer",
    "but apex with its CUDA extensions": "no apex",
    "with phi_min, phi_max": "not with phi_min",
    "allowed: reference | foreach": "has no such kernel",
}
"""What a cell says for an error, by what is in the error."""


def names(folder: str) -> list[str]:
    """The choices of a group of options."""
    return sorted(path.stem for path in (ROOT / "configs" / folder).glob("*.yaml"))


def cells(recipes: list[str]) -> list[dict[str, Any]]:
    """The cases for ``tests.fake_cuda.worker``, with what they are of."""
    optimizers = [(name, "own" if name == "lars" else "torch") for name in OWN]
    optimizers += list(product((name for name in names("optimizer") if name not in OWN), KERNELS))
    found = []
    for recipe, (optimizer, kernel), precision in product(recipes, optimizers, PRECISIONS):
        words = [f"recipe={recipe}", f"optimizer={optimizer}", f"precision.compute={precision}"]
        words += [f"optimizer.kernel={kernel}"] if kernel in KERNELS else []
        words += ["model=base"] if recipe == "domain" else []  # whose shape is that of the model of init_from
        of = {"optimizer": optimizer, "kernel": kernel, "precision": precision}
        found.append({"name": " ".join([recipe, *of.values()]), "words": words, "evaluate": False, "of": of,
                      "recipe": recipe})  # fmt: skip
    return found


def run_all(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results of all cases, run in one child process."""
    with tempfile.TemporaryDirectory() as folder:
        given, results = Path(folder) / "cases.json", Path(folder) / "results.json"
        given.write_text(json.dumps(cases))
        subprocess.run([sys.executable, "-m", "tests.fake_cuda.worker", given, results], cwd=ROOT, check=True)
        done: list[dict[str, Any]] = json.loads(results.read_text())
    return done


def outcome(result: dict[str, Any]) -> str:
    """What the table says of a result."""
    error = result["outcome"]
    return next((short for part, short in REASONS.items() if part in error), error)


def main() -> None:
    """Run the cells, print and write."""
    parser = argument_parser(__doc__)
    parser.add_argument("result", help="name of the file to write under scripts/results")
    parser.add_argument("--recipes", default=",".join(names("recipe")), help="which, with commas; default: all")
    args = parser.parse_args()
    if reason := stand_in.missing():
        sys.exit(f"a fake CUDA device cannot be built here: {reason}")
    results = run_all(cells(args.recipes.split(",")))
    table: dict[tuple[str, ...], dict[str, Any]] = {}
    for result in results:
        row = table.setdefault(tuple(result["of"].values()), dict(result["of"]))
        row[result["recipe"]] = outcome(result)
    counts = Counter(map(outcome, results))
    total = ", ".join(f"{number} {what}" for what, number in counts.most_common())
    note = (
        f"{len(results)} cells: {total}. One layer, sequences of the recipe's length, micro-batches of 4 and 2 "
        "samples. fused: the host's part of our Triton kernels, whose launches are checked and not run. torch: torch's "
        "own fused kernels, whose arguments are checked, because torch has no fakes of them. reference is the "
        "equations layer by layer and reads trust ratios on the host, by design. Not covered: compiled code, several "
        "ranks, files of checkpoints, init_from."
    )
    what = "Steps on fake CUDA tensors, by optimizer, kernel, precision and recipe"
    write_result(ROOT / "scripts/results" / Path(args.result).name, what, list(table.values()), note)


if __name__ == "__main__":
    main()
