"""Whether a run's tokenizer is that of its shards, and fits its model."""

from collections.abc import Callable
from pathlib import Path

from bert_pretrain.data.dataset import DataConfig, ShardSet
from bert_pretrain.data.tokenizer_files import TokenTable, has_tokenizer, read_tokenizer
from bert_pretrain.errors import ConfigError


def count_tokens(config: DataConfig) -> int | None:
    """The number of tokens of ``data.tokenizer``, None if there is none. Raises ``ConfigError``."""
    folder = Path(config.tokenizer)
    return len(read_tokenizer(folder).tokens) if has_tokenizer(folder) else None


def check_vocabulary(config: DataConfig, splits: list[ShardSet], report: Callable[[str], None]) -> None:
    """Raise ``ConfigError`` if ``data.tokenizer`` has other tokens than the shards; report a missing one."""
    folder = Path(config.tokenizer)
    if not has_tokenizer(folder):
        report(f"no vocabulary at {folder}: checkpoints will not contain a tokenizer; set data.tokenizer to its folder")
        return
    table = read_tokenizer(folder)
    for shards in splits:
        if shards.header is not None and shards.header.vocab_hash != table.vocab_hash:
            raise ConfigError(
                f"data.tokenizer is {config.tokenizer!r}, but {shards.paths[0]} was made with another vocabulary; "
                "give the tokenizer that bert-pretrain prepare wrote beside the shards"
            )
        check_size(table, folder, shards.vocab_size)


def check_size(table: TokenTable, tokenizer: Path | str, vocab_size: int) -> None:
    """Raise ``ConfigError`` if the ``tokenizer`` has more tokens than the model, ``vocab_size``."""
    if len(table.tokens) > vocab_size:
        raise ConfigError(
            f"data.tokenizer {tokenizer} has {len(table.tokens)} tokens, but the model only {vocab_size}; set "
            f"model.vocab_size={len(table.tokens)} or give the tokenizer that the data was made with"
        )
