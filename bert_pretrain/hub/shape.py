"""Fills the options ``model.*`` that are null: from the run in ``run_dir``, or from the model that ``init_from`` names.

Reads JSON and YAML only, so that every command sees numbers before torch is loaded.
"""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from bert_pretrain.config import POSITIONS, PretrainConfig
from bert_pretrain.data.row_source import local_tokenizer
from bert_pretrain.data.shard_directory import shard_paths
from bert_pretrain.data.shards import ShardReader
from bert_pretrain.data.tokenizer_files import read_ids, same_ids
from bert_pretrain.errors import ConfigError
from bert_pretrain.hub.source import source_config
from bert_pretrain.model.options import SIZES, ModelConfig
from bert_pretrain.options.stored_options import read_options

Config = TypeVar("Config", bound=PretrainConfig)
_FIXED = (*SIZES, "hidden_act", "layer_norm_eps", "type_vocab_size", "pad_token_id")
"""Options in which a new run equals the model that it starts from."""
_DEFAULTS = {
    "max_position_embeddings": 512,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}
"""What ``config.json`` means where it lacks an entry."""


def unknown_options(model: ModelConfig) -> list[str]:
    """The options that are null and have no meaning without a model to start from."""
    optional = ("layer_norm_eps", "type_vocab_size", "pad_token_id")
    return [f.name for f in fields(model) if f.name not in optional and getattr(model, f.name) is None]


def resolve_model(config: Config) -> Config:
    """``config`` with the null options of ``model`` filled, and the folder of a tokenizer that has a name on the hub.

    Raises ``ConfigError`` if they are unknown, if a stated one differs from the model that ``init_from`` names, or if
    that is no model which this program takes.
    """
    if config.data.kind != "shards":
        config = replace(config, data=replace(config.data, tokenizer=str(local_tokenizer(config.data.tokenizer))))
    stored = Path(config.run_dir) / "config.yaml"
    if stored.is_file():  # the run is resumed: init_from may be gone
        model = _filled(config.model, read_options(stored).get("model") or {})
    else:
        model = config.model if config.init_from is None else _as_in_source(config, config.init_from)
    if unknown := unknown_options(model):
        raise ConfigError(
            f"model.{unknown[0]} is null, which means as in the model of init_from, but init_from is "
            f"{config.init_from!r}; give init_from, or a model such as model=base"
        )
    return replace(config, model=model)


def resolve_if_needed(config: Config) -> Config:
    """``config``, resolved if an option is null or the run exists: else ``init_from`` need not be on this machine."""
    needed = unknown_options(config.model) or (Path(config.run_dir) / "config.yaml").is_file()
    return resolve_model(config) if needed else config


def _filled(model: ModelConfig, values: dict[str, Any]) -> ModelConfig:
    names = (f.name for f in fields(model) if getattr(model, f.name) is None and values.get(f.name) is not None)
    return replace(model, **{name: values[name] for name in names})


def _as_in_source(config: PretrainConfig, name: str) -> ModelConfig:
    folder, found = source_config(name, "init_from")
    values, model = {**_DEFAULTS, **found}, config.model
    for option in _FIXED:
        stated = getattr(model, option)
        if stated is not None and stated != values[option]:
            raise ConfigError(
                f"model.{option} is {stated!r}, but init_from {name!r} has {values[option]!r}; leave it out "
                "(model=from_init), or give another init_from"
            )
    positions = model.max_position_embeddings
    learned = values["max_position_embeddings"]
    if positions is not None and positions > learned and config.init_positions is None:
        raise ConfigError(
            f"model.max_position_embeddings is {positions}, but init_from {name!r} has {learned}; give init_positions="
            f"{' or '.join(POSITIONS)} to make the others of these, or leave it out (model=from_init)"
        )
    if model.vocab_size is None:
        values["vocab_size"] = _vocab_size(config, folder, values["vocab_size"])
    return _filled(model, values)


def _vocab_size(config: PretrainConfig, folder: Path, old_size: int) -> int:
    """The model's vocabulary for the shards' tokenizer, from that of the model in ``folder``.

    If its ids are those of the old tokenizer: as before, or more for more tokens. Else as many as it has tokens. Both
    are padded to a multiple of 64 or 8 if the old size is one.
    """
    new, old = read_ids(Path(config.data.tokenizer)), read_ids(folder)
    words = max(new.values(), default=0) + 1 if new else _words_of_shards(config)
    if words is None:
        return old_size
    if (new is None or old is None or same_ids(new, old)) and words <= old_size:
        return old_size
    multiple = next(size for size in (64, 8, 1) if old_size % size == 0)
    return -(-words // multiple) * multiple


def _words_of_shards(config: PretrainConfig) -> int | None:
    """The vocabulary size in the header of the first shard; None without one."""
    directory = Path(config.data.dir)
    paths = shard_paths(directory, "train") if directory.is_dir() else []
    if not paths:
        return None
    reader = ShardReader(paths[0])
    reader.close()
    return reader.header.vocab_size if reader.header is not None else None
