"""Folders that ``Dataset.save_to_disk`` of the ``datasets`` library wrote."""

from pathlib import Path

from bert_pretrain.errors import ConfigError
from bert_pretrain.files.file_system import read_json

_SAVED = ("state.json", "dataset_dict.json")


def is_saved(folder: Path) -> bool:
    """Whether ``Dataset.save_to_disk`` wrote ``folder``."""
    return any((folder / name).is_file() for name in _SAVED)


def check_saved(folder: Path, option: str) -> None:
    """Raise ``ConfigError`` if a split that ``save_to_disk`` wrote to ``folder``, the value of ``option``, has no rows.

    It has no data files, and ``datasets`` fails to load it.
    """
    for state in sorted([*folder.glob("state.json"), *folder.glob("*/state.json")]):
        if read_json(state, "write the set again with save_to_disk").get("_data_files") == []:
            raise ConfigError(
                f"{option} {folder}: {state} lists no data files, so it has no rows; write it again with rows, or give "
                "the folder of another split"
            )
