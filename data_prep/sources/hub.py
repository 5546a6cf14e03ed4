"""Data sets that the ``datasets`` library loads, by hub name or from disk: where the arrow files with their rows are.

    python -m data_prep.sources.hub '{"path": NAME, "subset": null, "split": "train", "text_field": "text"}'

The library downloads and prepares; the workers then read its files, without the library. A program of its own
(:mod:`data_prep.engine.planning` runs it), because importing the library takes longer than preparing a small corpus.
"""

import json
import sys
from pathlib import Path

import datasets

from bert_pretrain.errors import ConfigError


def main() -> None:
    """Print the names of the arrow files as JSON; end with a message where there is no such data set."""
    try:
        print(json.dumps([str(path) for path in arrow_files(**json.loads(sys.argv[1]))]))
    except ConfigError as error:
        sys.exit(str(error))


def arrow_files(path: str, subset: str | None, split: str, text_field: str) -> list[Path]:
    """The arrow files of one split, in order. ``ConfigError`` where there is no such data set, split or field."""
    try:
        if Path(path).is_dir() and any((Path(path) / name).exists() for name in ("state.json", "dataset_dict.json")):
            loaded = datasets.load_from_disk(path)
            if isinstance(loaded, datasets.DatasetDict):
                loaded = loaded[split]
        else:
            loaded = datasets.load_dataset(path, subset, split=split)
    except Exception as error:  # the library, its builders and the network raise whatever they like
        raise ConfigError(
            f"corpus.path={path} corpus.subset={subset} corpus.split={split}: the datasets library cannot load it "
            f"({type(error).__name__}: {error}); give a name on the hub or a folder of save_to_disk"
        ) from None
    if text_field not in loaded.column_names:
        raise ConfigError(
            f"corpus.path {path}: no field {text_field!r} (corpus.text_field); "
            f"there are {', '.join(loaded.column_names)}"
        )
    if loaded._indices is not None or not loaded.cache_files:
        raise ConfigError(
            f"corpus.path {path} is a selection from another data set; write it out first with flatten_indices() and "
            "save_to_disk()"
        )
    return [Path(file["filename"]).absolute() for file in loaded.cache_files]


if __name__ == "__main__":
    main()
