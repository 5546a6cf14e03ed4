"""A run on shards at an address: its options with the folder of the cache, and whether the cache is large enough."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from bert_pretrain.data.dataset import DataConfig, ShardSet
from bert_pretrain.data.shard_cache import remote_folder
from bert_pretrain.data.shard_directory import TOKENIZER, shard_folder
from bert_pretrain.errors import ConfigError


def local_data(data: DataConfig) -> DataConfig:
    """``data`` with the folder of :func:`shard_folder` where ``data.dir`` is an address. Raises ``ConfigError``."""
    folder = str(shard_folder(data.dir, data))
    if folder == str(Path(data.dir)):
        return data
    inside = data.tokenizer == f"{data.dir}/{TOKENIZER}"
    return replace(data, dir=folder, tokenizer=f"{folder}/{TOKENIZER}" if inside else data.tokenizer)


def check_cache(config: DataConfig, shards: ShardSet, heldout: ShardSet | None) -> None:
    """Raise ``ConfigError`` if the cache is too small for the shards that the sample order visits at the same time."""
    if remote_folder(shards.paths[0].parent) is None:
        return
    bytes_per_sample = shards.paths[0].stat().st_size / shards.bounds[1]
    samples = shards.samples + (heldout.samples if heldout is not None else 0)
    if config.window is not None:
        largest = int(np.diff(shards.bounds).max())
        samples = min(samples, 2 * largest * (-(-config.window // largest) + 1))
    needed = samples * bytes_per_sample / 2**30
    if needed > config.cache_gib:
        order = (
            "shuffles all shards together" if config.window is None else f"shuffles {config.window} samples together"
        )
        raise ConfigError(
            f"data.cache_gib is {config.cache_gib:g}, but an epoch {order}, which takes {needed:.3g} GiB: shards would "
            f"be downloaded again and again; set data.cache_gib={needed * 1.01:.3g}, or a smaller data.window "
            "(samples that are shuffled together; a shard has "
            f"{shards.bounds[1]})"
        )
