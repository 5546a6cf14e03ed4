"""A run on shards at an address: its options with the folder of the cache, and whether the cache is large enough."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from bert_pretrain.data.dataset import ShardSet
from bert_pretrain.data.options import DataConfig
from bert_pretrain.data.shard_cache import remote_folder
from bert_pretrain.data.shard_directory import TOKENIZER, shard_folder
from bert_pretrain.errors import ConfigError


def local_data(data: DataConfig) -> DataConfig:
    """``data`` with the folder of :func:`shard_folder` where ``data.dir`` is an address. Raises ``ConfigError``."""
    if data.kind != "shards":
        return data
    data = replace(data, mix={name: str(shard_folder(place, data)) for name, place in data.mix.items()})
    folder = str(shard_folder(data.dir, data))
    if folder == str(Path(data.dir)):
        return data
    inside = data.tokenizer == f"{data.dir}/{TOKENIZER}"
    return replace(data, dir=folder, tokenizer=f"{folder}/{TOKENIZER}" if inside else data.tokenizer)


def check_cache(config: DataConfig, training: list[ShardSet], heldout: list[ShardSet]) -> None:
    """Raise ``ConfigError`` if the cache is too small for the shards that the sample orders of the sets visit at the
    same time."""
    needed = sum(_bytes_at_once(shards, config.window) for shards in training)
    needed = (needed + sum(_bytes_at_once(shards, None) for shards in heldout)) / 2**30
    if needed > config.cache_gib:
        together = "all shards" if config.window is None else f"{config.window} samples"
        raise ConfigError(
            f"data.cache_gib is {config.cache_gib:g}, but an epoch shuffles {together} together, which takes "
            f"{needed:.3g} GiB: shards would be downloaded again and again; set data.cache_gib={needed * 1.01:.3g}, or "
            f"a smaller data.window (samples that are shuffled together; a shard has {training[0].bounds[1]})"
        )


def _bytes_at_once(shards: ShardSet, window: int | None) -> float:
    """Bytes of the cache that a set at an address takes; 0 for one on a local disk."""
    if remote_folder(shards.paths[0].parent) is None:
        return 0.0
    samples = shards.samples
    if window is not None:
        largest = int(np.diff(shards.bounds).max())
        samples = min(samples, 2 * largest * (-(-window // largest) + 1))
    return samples * shards.paths[0].stat().st_size / int(shards.bounds[1])
