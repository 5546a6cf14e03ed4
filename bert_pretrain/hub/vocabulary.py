"""The tokens of a tokenizer's folder, read from its files. Needs no torch."""

import json
from pathlib import Path

from bert_pretrain.errors import ConfigError


def read_tokens(folder: Path) -> dict[str, int] | None:
    """Each token of the tokenizer in ``folder`` with its id, added ones too; None if there is no tokenizer.

    Raises ``ConfigError`` if a file cannot be read.
    """
    path = folder / "tokenizer.json"
    try:
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            vocabulary = content["model"]["vocab"]
            if isinstance(vocabulary, list):  # of a unigram model, with scores
                vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
            added = {entry["content"]: entry["id"] for entry in content.get("added_tokens") or ()}
            return {**vocabulary, **added}
        path = folder / "vocab.txt"
        if not path.is_file():
            return None
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        tokens = {line.removesuffix("\r"): number for number, line in enumerate(lines)}
        path = folder / "added_tokens.json"
        return {**tokens, **json.loads(path.read_text(encoding="utf-8"))} if path.is_file() else tokens
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read as a tokenizer ({error!r}); restore the file") from None


def same_ids(one: dict[str, int], other: dict[str, int]) -> bool:
    """Whether all tokens that both have are at the same ids."""
    return all(other.get(token, number) == number for token, number in one.items())
