"""Mixtures of several sets of shards: their shares, by weight and temperature, in samples or in tokens.

The share of a set of size n is proportional to weight * n^(1/T): temperature-scaled mixing (Raffel et al. 2020, section
3.5.2). XLM-R's exponent of 0.3 (Conneau et al. 2020) is T = 3.33, multilingual BERT's of 0.7 is T = 1.43. Sizes and
shares count samples, or real tokens: then a set of shorter samples gets more of them.

Powers are computed with 50 decimal digits, which are the same on every machine, and shares rounded to whole positions
of a period of the order (largest remainder).
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal, localcontext
from math import inf

import numpy as np

from bert_pretrain.data.dataset import ShardSet, open_split
from bert_pretrain.data.options import DataConfig
from bert_pretrain.data.sample_order import PERIOD, MixedOrder, SampleOrder, hash64
from bert_pretrain.data.shard_directory import read_manifest
from bert_pretrain.errors import ConfigError

_MAIN = "data.dir"
_ROWS = 16_384  # read at once


class MixedShards(ShardSet):
    """The shards of one split of several sets, one after the other."""

    def __init__(self, sets: list[ShardSet], names: list[str]) -> None:
        self.sets, self.names = sets, names
        self.paths = [path for part in sets for path in part.paths]
        self.max_predictions = sets[0].max_predictions
        self.header = sets[0].header
        self.vocab_size = sets[0].vocab_size
        self.id_limit = min(part.id_limit for part in sets)
        self.fingerprint = hashlib.sha256("\n".join(part.fingerprint for part in sets).encode()).hexdigest()
        self.bounds = np.cumsum([0, *(size for part in sets for size in np.diff(part.bounds))])
        self.samples = int(self.bounds[-1])
        self._open = {}


def open_data_sets(
    config: DataConfig,
    split: str,
    vocab_size: int,
    report: Callable[[str], None] = lambda _: None,
    tokens: int | None = None,
    share: tuple[int, int] = (0, 1),
) -> ShardSet | None:
    """One split of ``data.dir``, and of the sets of ``data.mix`` if there are any, as :func:`open_split` opens it.

    None if no set has held-out samples. Raises ``ConfigError`` if the sets do not fit each other, or one lacks training
    samples.
    """
    places = {_MAIN: config.dir} | {f"data.mix.{name}": place for name, place in config.mix.items()}
    opened = {
        name: open_split(replace(config, dir=place, mix={}, mix_weights={}), split, vocab_size, report, tokens, share)
        for name, place in places.items()
    }
    found = {name: shards for name, shards in opened.items() if shards is not None}
    if split == "train" and len(found) < len(opened):
        name = next(name for name, shards in opened.items() if shards is None)
        raise ConfigError(f"{name} {places[name]} holds no training samples; bert-pretrain prepare makes them")
    first = next(iter(found.values()), None)
    if first is None or not config.mix:
        return first
    for name, shards in found.items():
        if shards.max_predictions != first.max_predictions:
            raise ConfigError(
                f"{name} {places[name]} has up to {shards.max_predictions} masked tokens a sample, {_MAIN} up to "
                f"{first.max_predictions}; prepare both with the same max_predictions"
            )
        if shards.header and first.header and shards.header.vocab_hash != first.header.vocab_hash:
            raise ConfigError(
                f"{name} {places[name]} was made with another vocabulary than {_MAIN} {config.dir}; prepare it with "
                f"vocab={config.tokenizer}"
            )
    return MixedShards(list(found.values()), list(found))


def sets_of(shards: ShardSet | None) -> list[ShardSet]:
    """The sets of a mixture, or the one that there is."""
    if isinstance(shards, MixedShards):
        return shards.sets
    return [] if shards is None else [shards]


def sample_order(
    config: DataConfig, shards: ShardSet, seed: int, report: Callable[[str], None] = lambda _: None
) -> SampleOrder | MixedOrder:
    """The order of the training samples. Raises ``ConfigError`` for a set whose share is too small."""
    if not isinstance(shards, MixedShards):
        return SampleOrder(seed, shards.samples, config.block_size, config.window)
    weights = [config.mix_weights.get(name, 1.0) for name in ("dir", *config.mix)]
    samples = [part.samples for part in shards.sets]
    sizes = samples if config.mix_by == "samples" else [count_tokens_of(part, report) for part in shards.sets]
    quotas = quotas_of(samples, sizes, weights, config.mix_temperature)
    for name, quota in zip(shards.names, quotas, strict=True):
        if quota == 0:
            raise ConfigError(
                f"{name} has a share of the mixture below 1/{PERIOD}; raise its weight or data.mix_temperature, or "
                "leave it out"
            )
    orders = [
        SampleOrder(hash64(seed, number), count, config.block_size, config.window)
        for number, count in enumerate(samples)
    ]
    return MixedOrder(seed, tuple(orders), quotas)


def quotas_of(samples: list[int], sizes: list[int], weights: list[float], temperature: float) -> tuple[int, ...]:
    """Positions of a period for each set: ``samples`` it has, and its size and weight in the mixture.

    A share of w n^(1/T) in the unit of ``sizes`` is one of w n^(1/T) * samples / n in samples.
    """
    with localcontext(prec=50):
        power = Decimal(0) if temperature == inf else 1 / Decimal(repr(temperature))
        shares = [
            Decimal(repr(weight)) * (Decimal(size) if power == 1 else Decimal(size) ** power) * count / size
            for count, size, weight in zip(samples, sizes, weights, strict=True)
        ]
        exact = [PERIOD * share / sum(shares) for share in shares]
        quotas = [int(value) for value in exact]
        by_remainder = sorted(range(len(exact)), key=lambda number: (quotas[number] - exact[number], number))
        for number in by_remainder[: PERIOD - sum(quotas)]:
            quotas[number] += 1
    return tuple(quotas)


def count_tokens_of(shards: ShardSet, report: Callable[[str], None]) -> int:
    """The real tokens of a set of training shards: as its manifest says, or else counted."""
    directory = shards.paths[0].parent
    manifest = read_manifest(directory) or {}
    length = str(manifest.get("sequence_length"))
    stages = [stage[length] for stage in manifest.get("stages", []) if length in stage]
    counts = [of_length["train"] for of_length in stages if "train" in of_length]
    if sum(count["samples"] for count in counts) == shards.samples:
        return int(sum(count["real_tokens"] for count in counts))
    report(f"counting the tokens of {directory}")
    starts = range(0, shards.samples, _ROWS)
    return sum(int(shards.read(at, min(at + _ROWS, shards.samples))["input_mask"].sum(dtype=np.int64)) for at in starts)


def describe_mixture(shards: object, order: SampleOrder | MixedOrder, seen: int) -> list[tuple[str, str]]:
    """Rows of the plan of a run of ``seen`` samples: share and epochs of each set of a mixture, none without."""
    if not isinstance(order, MixedOrder) or not isinstance(shards, MixedShards):
        return []
    uses = order.positions(seen).tolist()
    return [
        (
            "" if number else "mixture",
            f"{quota / PERIOD:.2%} of the samples from {name}: {used:,} = {used / part.samples:,.2f} epochs of "
            f"{part.samples:,}",
        )
        for number, (name, part, quota, used) in enumerate(
            zip(shards.names, shards.sets, order.quotas, uses, strict=True)
        )
    ]
