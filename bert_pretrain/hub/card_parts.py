"""What the cards share: names of the hub for licences and data sets, tables, and the sources of the text."""

import re
from collections.abc import Sequence
from typing import Any

from bert_pretrain.program import commit, release
from bert_pretrain.training.metrics import Row

_LICENCE = re.compile(
    r"apache-2\.0|mit|openrail|afl-3\.0|artistic-2\.0|bsl-1\.0|bsd(-[23]-clause)?|bsd-3-clause-clear|c-uda|cc|cc0-1\.0|"
    r"cc-by-2\.[05]|cc-by(-nc)?(-sa)?-[34]\.0|cc-by-nc(-sa)?-2\.0|cc-by-nc-nd-[34]\.0|cc-by-nd-4\.0|cdla-sharing-1\.0|"
    r"cdla-permissive-[12]\.0|wtfpl|ecl-2\.0|epl-[12]\.0|etalab-2\.0|eupl-1\.[12]|agpl-3\.0|gfdl|gpl(-[23]\.0)?|"
    r"lgpl(-2\.1|-3\.0|-lr)?|isc|lppl-1\.3c|ms-pl|mpl-2\.0|odc-by|odbl|osl-3\.0|postgresql|ofl-1\.1|ncsa|unlicense|"
    r"zlib|pddl|unknown"
)
"""The names that the hub has for licences (huggingface.co/docs/hub/repositories-licenses); others are ``other``."""
_HUB_ID = re.compile(r"(?:hf://(?:datasets/)?([\w.-]+/[\w.-]+).*|([\w.-]+/[\w.-]+))")
TAGS = ["bert", "masked-lm", "pretraining", "bert-pretrain"]
_PAGE = "---\n{{ card_data }}\n---\n\n{{ page }}\n"


def title_of(name: str) -> str:
    """What the card calls the model or the shards: their name without its owner, on one line."""
    return " ".join(name.rpartition("/")[2].split())


def hub_ids(names: list[str]) -> list[str]:
    """The data sets of the hub among public names and addresses."""
    found = [match[1] or match[2] for name in names if (match := _HUB_ID.fullmatch(name))]
    return list(dict.fromkeys(found))


def languages_of(sources: list[Row]) -> list[str]:
    """The languages that the sources state, each once."""
    return list(dict.fromkeys(source["language"] for source in sources if source.get("language")))


def licence_entries(stated: list[str]) -> dict[str, Any]:
    """The metadata for the licences ``stated``: the hub's names, and what has none there."""
    known = [name.strip() for name in stated if name.strip() and not name.startswith("not stated")]
    names = dict.fromkeys(known if len(known) == len(stated) > 0 else [*known, "unknown"])
    others = [name for name in names if not _LICENCE.fullmatch(name.lower())]
    listed = list(
        dict.fromkeys([*(name.lower() for name in names if name not in others), *(["other"] if others else [])])
    )
    slug = re.sub(r"[^\w.+-]+", "-", others[0].lower()).strip("-") if len(others) == 1 else "several"
    return {
        "license": listed if len(listed) > 1 else listed[0],
        "license_name": (slug or "other") if others else None,
    }


def limits(sources: list[Row], model: str) -> str:
    """``model``: how the page calls the model that was trained on these sources."""
    languages = f" The language of that text: {', '.join(languages_of(sources))}." if languages_of(sources) else ""
    return (
        f"## Limits\n\n{model} has the errors and the bias of the text below, knows nothing that is not in it, and may "
        f"repeat parts of it.{languages} No use of it was tested: fine-tune it, and measure it on data of that use."
    )


def data_table(sources: list[Row], datasets: Sequence[str] = ()) -> str:
    """A row for each source; without them ``datasets``, names on the hub, as links."""
    if not sources:
        named = ", ".join(f"[{name}](https://huggingface.co/datasets/{name})" for name in datasets)
        return named or "Not recorded: the manifest of the shards was not at hand when this card was written."
    titles = ("source", "version", "language", "licence", "documents", "characters")
    rows = [[str(source.get(name, "")) for name in ("name", *titles[1:4])] +
            [f"{source[name]:,}" for name in titles[4:]] for source in sources]  # fmt: skip
    return table(titles, rows)


def writer() -> tuple[str, ...]:
    """A row of a table: which program wrote the card."""
    known = commit()
    return "card written by", f"bert-pretrain {release()}" + (f", commit {known}" if known else "")


def cell(text: str) -> str:
    """``text`` on one line, which ends no cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def table(titles: tuple[str, ...], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, whatever its cells hold."""
    lines = [titles, tuple("---" for _ in titles), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)


def rendered(card: type, data: Any, parts: Sequence[str]) -> str:
    """A card of the hub's class ``card``: its metadata, and the page of these parts."""
    return str(card.from_template(data, template_str=_PAGE, page="\n\n".join(parts)))  # type: ignore[attr-defined]
