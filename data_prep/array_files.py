"""Arrays that one stage of a preparation writes and later ones read, as npy and npz files."""

import zlib
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from bert_pretrain.errors import ConfigError, on_one_line


def read_arrays(path: Path, *names: str) -> list[np.ndarray]:
    """The arrays of an npz file, or without ``names`` the one of an npy file. Raises ``ConfigError`` if it is damaged.

    Appends read what was written long before.
    """
    try:
        loaded = np.load(path)
        if not names:
            return [loaded]
        with loaded:
            return [loaded[name] for name in names]
    except (ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        raise ConfigError(
            f"{path} cannot be read: it is damaged ({on_one_line(error)}); restore it from a copy, or prepare all the "
            "text anew, into another out_dir"
        ) from None
