"""What the stages of a preparation took and gave, what they warned of, its options and versions."""

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from bert_pretrain.html_page import Cell, Html, Number, folded, table
from bert_pretrain.options.stored_options import flat

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


def summary(manifest: Record) -> str:
    """How much text was read and kept."""
    names = ("documents", "sentences", "tokens", "heldout_documents")
    kept = {name: added_up(manifest, "token ids", name) or 0 for name in names}
    read = added_up(manifest, "text", "documents_read") or added_up(manifest, "text", "documents") or 0
    return (
        f"{kept['documents']:,} documents with {kept['sentences']:,} sentences and {kept['tokens']:,} tokens, of "
        f"{read:,} documents that were read; {kept['heldout_documents']:,} of them are held out."
    )


def flow(manifest: Record) -> list[Html]:
    """What went into each stage, what was left out and what came out; and all that was counted."""
    rows: list[list[Cell]] = []
    documents, tokens = 0, ""
    for stage in manifest["stages"]:
        name, seconds = stage["stage"], stage.get("seconds", 0.0)
        kind = name.split(" (append ")[0]
        if kind == "text":
            documents = stage["documents"]
            taken = f"{stage.get('documents_read', documents):,} documents"
            left_out = f"{sum(stage.get('dropped', {}).values()):,} by rules"
            given = _numbers(stage, "documents", "sentences", "characters")
        elif kind == "repeats":
            taken = f"{documents:,} documents"
            left_out = _numbers(stage, "exact_duplicates", "near_duplicates")
            documents -= stage["exact_duplicates"] + stage["near_duplicates"]
            given = f"{documents:,} documents"
        elif kind == "tokenizer":
            taken, left_out = f"{documents:,} documents", ""
            given = _numbers(stage, "vocabulary", "added_words").replace("vocabulary", "entries")
        elif kind == "token ids":
            gone = [key for key in stage if "dropped" in key and key != "documents_dropped_as_repeated" and stage[key]]
            taken = f"{documents:,} documents"
            left_out = _numbers(stage, *gone).replace(" dropped", "")
            given = _numbers(stage, "documents", "sentences", "tokens")
            tokens = _numbers(stage, "documents", "tokens")
        elif kind == "samples":
            taken = tokens
            left_out, given = _of_samples(stage)
        else:
            taken = _numbers(stage, "samples")
            left_out = ""
            given = _numbers(stage, "samples", "shards")
        rows.append([name, taken, left_out, given, Number(seconds, f"{seconds:,.1f}")])
    header = ["stage", "in", "left out", "out", "seconds"]
    counts = [list(row) for stage in manifest["stages"] for row in _counts(stage)]
    return [
        table("The stages of the preparation: what went in and what came out", header, rows),
        folded("All counts", table("Every number that the stages counted", ["stage", "count", "number"], counts)),
    ]


def _of_samples(stage: Record) -> tuple[str, str]:
    """What the samples of each length left out, and how many there are."""
    splits = {key: value for key, value in stage.items() if key.isdigit()}
    lost = [
        f"length {length}: {sum(of['tokens_in_no_sample'] for of in found.values()):,} tokens in no sample"
        for length, found in splits.items()
    ]
    made = [
        f"length {length}: " + ", ".join(f"{of['samples']:,} {split}" for split, of in found.items()) + " samples"
        for length, found in splits.items()
    ]
    return "; ".join(lost), "; ".join(made)


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
    rows: list[list[Cell]] = [[name, str(value)] for name, value in flat(manifest.get("options", {})).items()]
    for number, corpora in enumerate(manifest.get("appended", []), start=1):
        rows += [[f"append {number}: {name}", str(value)] for name, value in flat(corpora).items()]
    return [
        table("Versions of what made the shards", ["program", "version"], versions),
        folded("Options", table("The options of the preparation", ["option", "value"], rows)),
    ]
