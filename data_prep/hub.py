"""Data sets that the ``datasets`` library loads, by hub name or from disk, as the arrow files that hold their rows.

The library downloads and prepares; the workers then read its files, without the library.
"""

from pathlib import Path

import datasets

from bert_pretrain.errors import ConfigError
from data_prep.corpus import CorpusConfig


def arrow_files(corpus: CorpusConfig) -> list[Path]:
    """The arrow files of one split, in order. ``ConfigError`` where there is no such data set, split or field."""
    try:
        if Path(str(corpus.path)).is_dir() and _was_saved(Path(str(corpus.path))):
            loaded = datasets.load_from_disk(corpus.path)
            if isinstance(loaded, datasets.DatasetDict):
                loaded = loaded[corpus.split]
        else:
            loaded = datasets.load_dataset(corpus.path, corpus.subset, split=corpus.split)
    except Exception as error:  # the library, its builders and the network raise whatever they like
        raise ConfigError(
            f"corpus.path={corpus.path} corpus.subset={corpus.subset} corpus.split={corpus.split}: the datasets "
            f"library cannot load it ({type(error).__name__}: {error}); "
            "give a name on the hub or a folder of save_to_disk"
        ) from None
    if corpus.text_field not in loaded.column_names:
        raise ConfigError(
            f"corpus.path {corpus.path}: no field {corpus.text_field!r} (corpus.text_field); "
            f"there are {', '.join(loaded.column_names)}"
        )
    if loaded._indices is not None or not loaded.cache_files:
        raise ConfigError(
            f"corpus.path {corpus.path} is a selection from another data set; write it out first with "
            "flatten_indices() and save_to_disk()"
        )
    return [Path(file["filename"]).absolute() for file in loaded.cache_files]


def _was_saved(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("state.json", "dataset_dict.json"))
