"""``corpus=dataset``: the ``datasets`` library downloads a data set, and the workers read the arrow files it wrote.

Import this module only for that kind of corpus: loading the library takes longer than preparing a small corpus.
"""

from pathlib import Path

import datasets

from bert_pretrain.data.saved_set import check_saved, is_saved
from bert_pretrain.errors import ConfigError, did_you_mean
from bert_pretrain.files.hub_download import be_quiet, hub_reason
from data_prep.sources.rows import columns_of


def arrow_files(path: str, subset: str | None, split: str, text_field: str) -> list[Path]:
    """The arrow files of one split, in order. Raises ``ConfigError`` if data set, split or field do not exist."""
    be_quiet()
    try:
        if is_saved(Path(path)):
            check_saved(Path(path), "corpus.path")
            loaded = datasets.load_from_disk(path)
            if isinstance(loaded, datasets.DatasetDict):
                if split not in loaded:
                    raise ConfigError(f"corpus.split is {split!r}, not in {path}; {did_you_mean(split, loaded)}")
                loaded = loaded[split]
        else:
            loaded = datasets.load_dataset(path, subset, split=split)
    except ConfigError:
        raise
    except Exception as error:  # the library, its builders and the network raise many types
        raise ConfigError(
            f"corpus.path={path} corpus.subset={subset} corpus.split={split}: the datasets library cannot load it "
            f"({type(error).__name__}: {hub_reason(error)}); give a name on the hub, which needs a network, or a "
            "folder of save_to_disk"
        ) from None
    columns_of(text_field, loaded.column_names, path)
    if loaded._indices is not None or not loaded.cache_files:
        raise ConfigError(
            f"corpus.path {path} is a selection of rows of another data set; write it out first with "
            "flatten_indices() and save_to_disk()"
        )
    return [Path(file["filename"]).absolute() for file in loaded.cache_files]
