"""What ``prove_numbers.py`` compares, and how closely. Each function returns its differences as sentences."""

from collections.abc import Iterator
from typing import Any

Numbers = dict[str, Any]
NVLAMB_LIMIT = 5e-5
"""The largest error of a layer's weights after 50 float32 updates, relative to their norm."""


def tolerance(column: str, step: int) -> tuple[float, float]:
    """Relative and absolute tolerance of a value after ``step`` updates on another kind of machine.

    With AVX2 in place of AVX512 the demonstration's losses differed by 1e-7 at most, its gradient norms by 3e-7.
    Whole numbers and the learning rate do not depend on rounding.
    """
    if column.endswith("accuracy"):
        return 0.0, 0.01  # a share of predictions, of which single ones may change
    if column.endswith("loss"):
        return (1e-5 if step <= 20 else 1e-4), 0.0
    if column == "grad_norm":
        return (1e-4 if step <= 20 else 1e-3), 0.0
    return (1e-12, 0.0) if column == "lr" else (0.0, 0.0)


def column_differences(name: str, found: Numbers, expected: Numbers, exact: bool) -> Iterator[str]:
    """The first value of each column that differs; ``found`` may have further columns."""
    steps = expected.get("step", [])
    if found.get("step", []) != steps:
        yield f"{name}: the steps of its rows are {found.get('step', [])} and were {steps}"
        return
    for column, values in expected.items():
        if column not in found:
            yield f"{name}: its rows have no {column}"
            continue
        for step, new, old in zip(steps, found[column], values, strict=True):
            relative, absolute = (0.0, 0.0) if exact else tolerance(column, step)
            if not abs(new - old) <= max(relative * abs(old), absolute):
                allowed = "none" if exact else f"{relative or absolute:g}"
                yield f"{name}: {column} of step {step} is {new!r} and was {old!r}; allowed difference: {allowed}"
                break


def run_differences(name: str, found: Numbers, expected: Numbers, exact: bool) -> list[str]:
    """Two runs: training rows, evaluations and, if ``exact``, the hashes of layer rows and last weights."""
    differences = [
        difference
        for kind in ("training", "evaluations")
        for difference in column_differences(f"{name}, {kind}", found[kind], expected[kind], exact)
    ]
    for key, what in (("layers_sha256", "rows about the layers"), ("weights_sha256", "weights after the last step")):
        if exact and found[key] != expected[key]:
            differences.append(f"{name}: the {what} differ")
    return differences


def shard_differences(name: str, found: Numbers, expected: Numbers) -> list[str]:
    """Two folders of shards: vocabulary, names, and the content of each data set."""
    if found.keys() != expected.keys():
        return [f"{name}: the files are {sorted(found)} and were {sorted(expected)}"]
    differences = [] if found["vocab.txt"] == expected["vocab.txt"] else [f"{name}: vocab.txt differs"]
    for file in sorted(expected.keys() - {"vocab.txt"}):
        changed = [key for key, value in expected[file].items() if found[file].get(key) != value]
        if changed:
            differences.append(f"{name}: {file} differs in {', '.join(changed)}")
    return differences


def nvlamb_differences(found: Numbers, expected: Numbers, exact: bool) -> list[str]:
    """Each kernel's weights against the reference's, bit for bit, and its error against the equations."""
    differences = []
    for kernel, old in expected.items():
        error = found[kernel]["largest_error"]
        if not error < NVLAMB_LIMIT:
            differences.append(f"NVLAMB, {kernel}: the error is {error:.2g}; allowed: below {NVLAMB_LIMIT:g}")
        if exact and found[kernel]["weights_sha256"] != old["weights_sha256"]:
            differences.append(f"NVLAMB, {kernel}: the weights after 50 updates differ")
    return differences


def all_differences(found: Numbers, expected: Numbers, exact: bool) -> list[str]:
    """All parts that ``found`` has; of a demonstration on other texts nothing can be compared."""
    differences = shard_differences("fixed corpus", found["shards"], expected["shards"])
    differences += run_differences("small run", found["small"], expected["small"], exact)
    differences += run_differences("resumed run", found["resumed"], expected["small"], exact)
    differences += nvlamb_differences(found["nvlamb"], expected["nvlamb"], exact)
    if "demo" in found and found["demo"]["texts"] == expected["demo"]["texts"]:
        differences += shard_differences("demo", found["demo"]["shards"], expected["demo"]["shards"])
        differences += run_differences("demo", found["demo"]["run"], expected["demo"]["run"], exact)
    return differences
