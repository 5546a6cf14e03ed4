"""Compiles everything that runs on a GPU in Triton, for many kinds of GPUs, without one: registers, spills, bytes.

    python scripts/prove_targets.py scripts/results/cpu_DATE_targets.json

Two kinds of rows: NVLAMB's kernels in each kind of launch, for every target; and the kernels that inductor writes for
BERT-base (two layers, 8 x 128 tokens, bf16, with padding), for a few. Needs triton, a C++ compiler and a CPU build of
torch. Ends with status 1 if a kernel of NVLAMB spills or is refused. One to five minutes of a core.
"""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import repository_root  # noqa: F401
from results_file import argument_parser, write_result

Row = dict[str, Any]
LARGEST = "registers", "local_bytes", "shared_bytes", "narrow_offsets"
MODEL_TARGETS = "sm_80", "sm_90"
NOTE = (
    "local_bytes: memory of a thread beside its registers, where spills go. narrow_offsets: 32-bit offsets into arrays "
    "of layers. Inductor's code is written for sm_90 and compiled for the others as it is, with all block sizes that "
    "it would try on the device ('sizes'); the row is that of the size with the fewest local bytes. Compiled, not run."
)


def main() -> None:
    """Compile, write the rows, and report faults in NVLAMB's kernels."""
    parser = argument_parser(__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    from tests.fake_cuda import stand_in

    if reason := stand_in.missing():
        sys.exit(f"no fake CUDA device: {reason}")
    stand_in.load()  # before torch is imported
    from compiled_kernels import TARGETS, optimizer_rows
    from compiled_model import kernel_rows, write_code
    from transformers import BertConfig

    from bert_pretrain.data.collate import Shape

    launches = [row for target in TARGETS for row in optimizer_rows(target)]
    faults = [row for row in launches if "refused" in row or row["local_bytes"] or row["narrow_offsets"]]
    write(out, launches, [])  # the model takes minutes
    bert = BertConfig(num_hidden_layers=2, attn_implementation="sdpa")  # type: ignore[call-arg]
    written = write_code(bert, Shape(8, 128, 160, has_mask=True), "bf16")
    write(out, launches, [row for target in MODEL_TARGETS for row in kernel_rows(written, target)])
    for row in faults:
        print(f"FAULT  {row}", file=sys.stderr)
    sys.exit(bool(faults))


def write(out: Path, launches: list[Row], inductor: list[Row]) -> None:
    """Write the rows so far: one a kernel or graph and target, and below them what they sum up."""
    rows = summed_up(launches, "kernel") + summed_up(inductor, "kind")
    versions = {name: version(name) for name in ("torch", "triton", "transformers")}
    more: dict[str, Any] = {"versions": versions, "launches": launches, "inductor": inductor}
    write_result(out, "Triton kernels compiled for GPUs that were not there", rows, NOTE, **more)


def summed_up(rows: list[Row], by: str) -> list[Row]:
    """The largest numbers of all rows of a target that agree in ``by``, and how many were compiled or refused."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["target"], row[by]), []).append(row)
    found = []
    for (target, name), group in groups.items():
        good = [row for row in group if "refused" not in row]
        counts = {"compiled": len(good), "refused": len(group) - len(good)}
        largest = {key: max((row[key] for row in good), default=0) for key in LARGEST}
        found.append({"target": target, "what": name, **counts, **largest})
    return found


if __name__ == "__main__":
    main()
