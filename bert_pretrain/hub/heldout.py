"""Held-out shards for a model that exists: whether it can read them, and opening them. Needs no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from bert_pretrain.data.dataset import ShardSet, open_split
from bert_pretrain.data.shard_directory import shard_paths
from bert_pretrain.data.shards import ShardHeader, ShardReader
from bert_pretrain.data.tokenizer_files import has_tokenizer, read_tokenizer
from bert_pretrain.errors import ConfigError
from bert_pretrain.hub.source import Source

_FIRST_SAMPLES = 64  # looked at, for masks


@dataclass
class HeldoutShards:
    """Held-out shards that a model can read: what ``open_split`` takes from the options of a run."""

    dir: str
    sequence_length: int
    vocab_size: int
    check: str = "auto"


def check_fit(source: Source, directory: Path) -> HeldoutShards:
    """The held-out shards in ``directory``.

    Raises ``ConfigError`` if there are none, or if the model cannot read them: longer than its positions, other tokens.
    """
    paths = shard_paths(directory, "heldout")
    if not paths:
        raise ConfigError(
            f"data.dir {directory} has no held-out shards; bert-pretrain prepare makes them with heldout_fraction=0.05"
        )
    reader = ShardReader(paths[0])
    reader.close()
    length = reader.sequence_length
    positions = int(source.config.get("max_position_embeddings", 512))
    if length > positions:
        raise ConfigError(
            f"data.dir {directory} has samples of {length} tokens, but model_dir {source.name!r} only {positions} "
            f"positions; prepare shards with sequence_lengths=[{positions}]"
        )
    check_tokens(source, directory, reader.header)
    words = source.config["vocab_size"] if reader.header is None else reader.header.vocab_size
    return HeldoutShards(str(directory), length, words)


def check_tokens(source: Source, directory: Path, header: ShardHeader | None) -> None:
    """Raise ``ConfigError`` if the shards' ids mean other tokens to the model; print where nobody can tell.

    The model may have more tokens than the shards, if all of theirs have the same ids.
    """
    where = f"data.dir {directory} was made with another tokenizer than model_dir {source.name!r}"
    advice = f"prepare the text again with vocab={source.name}"
    if header is not None and header.vocab_size > source.config["vocab_size"]:
        raise ConfigError(f"{where}: {header.vocab_size} tokens, the model has {source.config['vocab_size']}; {advice}")
    table = read_tokenizer(source.folder) if has_tokenizer(source.folder) else None
    if header is None or table is None:
        unknown = f"the shards in {directory}" if header is None else f"model_dir {source.name!r}"
        return print(f"{unknown} came without a tokenizer: the same ids are taken to be the same tokens")
    if table.vocab_hash == header.vocab_hash:
        return None
    folder = directory / "tokenizer"
    theirs = read_tokenizer(folder) if has_tokenizer(folder) else None
    if theirs is None or theirs.vocab_hash != header.vocab_hash:
        raise ConfigError(f"{where}: {header.vocab_size} tokens of other names than its {len(table.tokens)}; {advice}")
    for number, (token, own) in enumerate(zip_longest(theirs.tokens, table.tokens[: len(theirs.tokens)])):
        if token != own:
            raise ConfigError(f"{where}: id {number} is {token!r} there and {own!r} here; {advice}")
    return None


def open_heldout(data: HeldoutShards, report: Callable[[str], None]) -> ShardSet:
    """The held-out shards, checked. Raises ``ConfigError`` if one is damaged, or if nothing is masked in them."""
    shards = open_split(data, "heldout", data.vocab_size, report)
    if shards is None or not shards.read(0, min(shards.samples, _FIRST_SAMPLES))["masked_lm_positions"].any():
        found = "no held-out samples" if shards is None else "held-out samples without masks"
        raise ConfigError(f"data.dir {data.dir} has {found}; bert-pretrain prepare makes them")
    return shards
