"""Where a model comes from: a run, a checkpoint, a folder of ``transformers``, a name on the hub. Needs no torch.

Only BERT is taken (``model_type: bert``), and only what this program computes: other architectures and traits are
refused by name.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_pretrain.checkpoint.find import checkpoints_in, resolve_checkpoint
from bert_pretrain.errors import ConfigError
from bert_pretrain.files.hub_download import HUB_NAME, INDEXES, SINGLE_FILES, local_model
from bert_pretrain.training.sessions import read_sessions

_FOREIGN = ("*.h5", "*.ckpt*", "*.index", "*.msgpack", "*.pt")
_SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
_TRAITS: dict[str, tuple[object, ...]] = {
    "position_embedding_type": (None, "absolute"),
    "is_decoder": (None, False),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "tie_word_embeddings": (None, True),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
    "auto_map": (None,),
}
"""Entries of ``config.json`` that change what is computed, and the values that this program computes."""

Report = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """A model on this machine."""

    name: str
    """As the user wrote it."""
    folder: Path
    """Holds ``config.json``, the weights and, if there is one, the tokenizer."""
    checkpoint: Path | None
    """The checkpoint of ours that ``folder`` is part of: it has moments, progress and ``config.yaml``."""
    config: dict[str, Any]
    """``config.json``."""


def find_source(name: str, option: str, report: Report, checked: bool = True) -> Source:
    """The model that ``name``, the value of ``option``, names: a hub name is downloaded, or taken from the cache.

    ``checked``: a checkpoint of ours is read once to compare its checksums.

    Raises ``ConfigError`` if there is none, if it has no weights, or if it is no BERT that this program computes.
    """
    folder, checkpoint = _locate(name, option, report, checked)
    source = Source(name, folder, checkpoint, _read_config(folder, name, option))
    weight_files(source, option)
    return source


def source_config(name: str, option: str) -> tuple[Path, dict[str, Any]]:
    """Folder and ``config.json`` of the model that ``name`` names; of a run, those of any checkpoint, unverified."""
    folder, _ = _locate(name, option, lambda _: None, checked=False)
    return folder, _read_config(folder, name, option)


def hub_base(name: str | None) -> str | None:
    """The model of the hub that ``init_from`` names, or that the run began from which it names; None of any other.

    To be asked where a run begins: later a folder of that name may be gone, and would pass for a name on the hub.
    """
    path = Path(name or ".").expanduser()
    if not path.exists():
        return name if HUB_NAME.fullmatch(name or "") else None
    sessions = read_sessions(path.parents[1] if path.parent.name == "checkpoints" else path)
    return sessions[0].get("base_model") if sessions else None


def weight_files(source: Source, option: str = "init_from") -> list[Path]:
    """The files with the weights of ``source``. Raises ``ConfigError`` if there are none or one is missing."""
    folder, where = source.folder, f"{option} is {source.name!r}"
    for single, index in zip(SINGLE_FILES, INDEXES, strict=True):
        if (folder / single).is_file():
            return [folder / single]
        if not (folder / index).is_file():
            continue
        try:
            names = sorted(set(json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{where}, whose {index} cannot be read ({error!r}); download it again") from None
        missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
        if missing or not names:
            raise ConfigError(f"{where}, which lacks {missing[0] if missing else 'all files'} of {index}; add it")
        return [folder / name for name in names]
    if foreign := sorted(path.name for pattern in _FOREIGN for path in folder.glob(pattern)):
        raise ConfigError(
            f"{where}, which has its weights in {foreign[0]} only; make a folder of transformers with "
            "bert-pretrain convert, and give that"
        )
    raise ConfigError(f"{where}, a folder without weights; it needs {' or '.join(SINGLE_FILES)}")


def _locate(name: str, option: str, report: Report, checked: bool) -> tuple[Path, Path | None]:
    """The folder with ``config.json``, and the checkpoint of ours it is part of; valid by its checksums if checked."""
    path = Path(name).expanduser()
    found = checkpoints_in(path / "checkpoints")
    if found or ((path / "model").is_dir() and (path / "progress.json").is_file()):
        checkpoint = path if not found else found[-1]
        if checked:
            checkpoint = resolve_checkpoint(path, option, report)
        return checkpoint / "model", checkpoint
    if path.is_file():
        raise ConfigError(
            f"{option} is {name!r}, a file; give the folder that holds config.json and weights. bert-pretrain convert "
            "makes one of other formats"
        )
    if path.is_dir():
        return _transformer_folder(path, name, option), None
    if not HUB_NAME.fullmatch(name):
        raise ConfigError(
            f"{option} is {name!r}, which is no checkpoint: there is no such folder; give a run, a checkpoint, a "
            "folder with config.json, or a name on the hub"
        )
    return _transformer_folder(local_model(name, option), name, option), None


def _transformer_folder(folder: Path, name: str, option: str) -> Path:
    """``folder``, or the part of it that holds the transformer of a sentence-transformers model."""
    parts = [folder, folder / "0_Transformer", folder / "0_BERT"]
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        parts += [folder / module["path"] for module in modules if module["type"].endswith("Transformer")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # no such model
    for part in parts:
        if (part / "config.json").is_file() and part.resolve().is_relative_to(folder.resolve()):
            return part
    raise ConfigError(
        f"{option} is {name!r}, which is no checkpoint and has no config.json; give a run, a checkpoint, a folder that "
        "save_pretrained or bert-pretrain export wrote, or make one with bert-pretrain convert"
    )


def _read_config(folder: Path, name: str, option: str) -> dict[str, Any]:
    """``config.json``, of a BERT that this program computes."""
    where = f"{option} is {name!r}"
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = config.get("model_type")
        architectures = config.get("architectures") or []
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{where}, whose config.json cannot be read ({error}); restore the file") from None
    known = all(str(architecture).startswith("Bert") for architecture in architectures)
    if kind is None and known and all(key in config for key in _SHAPE):  # of before transformers 2.3
        kind = "bert"
    if kind != "bert":
        found = kind or ", ".join(map(str, architectures)) or "without model_type"
        raise ConfigError(f"{where}, a model of another architecture ({found}); allowed: model_type bert")
    if missing := [key for key in _SHAPE if not isinstance(config.get(key), int)]:
        raise ConfigError(f"{where}, whose config.json has no {missing[0]}; add it")
    for trait, allowed in _TRAITS.items():
        if config.get(trait) not in allowed:
            raise ConfigError(
                f"{where}, whose config.json has {trait}={config[trait]!r}, which this program does not compute; "
                f"allowed: {allowed[-1] if allowed[-1] is not None else 'none'}"
            )
    return dict(config)
