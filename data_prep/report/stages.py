"""What the stages of a preparation took and gave, what they warned of, its options and versions."""

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from bert_pretrain.html_page import Cell, Html, Number, folded, table

Record = dict[str, Any]


def of_stage(manifest: Record, name: str) -> list[Record]:
    """The records of a stage: that of the preparation, and those of the appends to it."""
    return [row for row in manifest.get("stages", []) if row["stage"].split(" (append ")[0] == name]


def added_up(manifest: Record, stage: str, key: str) -> Any:
    """A count, or a list of counts, of a stage and its appends. None if the preparation did not count it."""
    found = [row[key] for row in of_stage(manifest, stage) if key in row]
    if found and isinstance(found[0], list):
        return [sum(values) for values in zip_longest(*found, fillvalue=0)]
    return sum(found) if found else None


def told(manifest: Record) -> list[str]:
    """What the preparation warned of, each once."""
    lines = [line for row in manifest["stages"] for key in ("notes", "warnings") for line in row.get(key, ())]
    return list(dict.fromkeys(lines))


def flow(manifest: Record) -> list[Html]:
    """What went into each stage, what was left out and what came out; and all that was counted."""
    rows: list[list[Cell]] = []
    before = ""
    for stage in manifest["stages"]:
        name = stage["stage"]
        kind = name.split(" (append ")[0]
        taken, left_out, given = _passed(kind, stage, before)
        seconds = stage.get("seconds", 0.0)
        rows.append([name, taken, left_out, given, Number(seconds, f"{seconds:,.1f}")])
        before = given
    header = ["stage", "in", "left out", "out", "seconds"]
    counts = [list(row) for stage in manifest["stages"] for row in _counts(stage)]
    return [
        table("The stages of the preparation, in their order. What stages do at once is in one line.", header, rows),
        folded("All counts", table("Every number that the stages counted", ["stage", "count", "number"], counts)),
    ]


def _passed(kind: str, stage: Record, before: str) -> tuple[str, str, str]:
    """In, left out and out of one stage. ``before``: what came out of the one before it."""
    if kind == "text":
        dropped = sum(stage.get("dropped", {}).values())
        read = _numbers(stage, "documents_read").replace("documents read", "documents")
        return read, f"{dropped:,} by rules", _numbers(stage, "documents", "sentences", "characters")
    if kind == "repeats":
        return before, _numbers(stage, "exact_duplicates", "near_duplicates", "repeated_sentences"), "which to drop"
    if kind == "tokenizer":
        return "the text without duplicates", "", _numbers(stage, "vocabulary", "added_words")
    if kind == "token ids":
        gone = [key for key in stage if "dropped" in key and stage[key]]
        return "the text", _numbers(stage, *gone), _numbers(stage, "documents", "sentences", "tokens")
    if kind == "samples":
        lengths = {key: value for key, value in stage.items() if key.isdigit()}
        lost = "; ".join(
            f"{length}: {sum(of['tokens_in_no_sample'] for of in splits.values()):,} tokens in no sample"
            for length, splits in lengths.items()
        )
        made = "; ".join(
            f"{length}: " + ", ".join(f"{of['samples']:,} {split}" for split, of in splits.items())
            for length, splits in lengths.items()
        )
        return before, lost, f"samples of length {made}"
    return "samples", "", _numbers(stage, "samples", "shards")


def _numbers(stage: Record, *names: str) -> str:
    return ", ".join(f"{stage[name]:,} {name.replace('_', ' ')}" for name in names if name in stage)


def _counts(stage: Record) -> Iterator[tuple[str, str, Cell]]:
    for key, value in stage.items():
        if isinstance(value, int | float):
            yield stage["stage"], key.replace("_", " "), value
        elif key.isdigit():  # a sequence length: the counts of its samples, by split
            for split, of_split in value.items():
                for name, number in of_split.items():
                    if isinstance(number, int):
                        yield f"samples {key}", f"{split}: {name.replace('_', ' ')}", number


def options(manifest: Record) -> list[Html]:
    """All options that the shards depend on, and the versions of what made them."""
    versions: list[list[Cell]] = [[name, version] for name, version in manifest.get("versions", {}).items()]
    versions.append(["format of the manifest", str(manifest.get("format_version", ""))])
    rows: list[list[Cell]] = [[name, str(value)] for name, value in _flat(manifest.get("options", {}), "")]
    for number, corpora in enumerate(manifest.get("appended", []), start=1):
        rows += [[f"append {number}: {name}", str(value)] for name, value in _flat(corpora, "")]
    return [
        table("Versions of what made the shards", ["", "version"], versions),
        folded("Options", table("The options of the preparation", ["option", "value"], rows)),
    ]


def _flat(values: Record, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
