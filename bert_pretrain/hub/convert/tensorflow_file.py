"""Reads TensorFlow checkpoints, through tensorflow: the extra ``convert``."""

import json
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from bert_pretrain.errors import ConfigError
from bert_pretrain.hub.convert import tensorflow_reader
from bert_pretrain.hub.convert.google import GOOGLE
from bert_pretrain.hub.convert.layout import Layout, Renamed, rename
from bert_pretrain.hub.convert.model_garden import MARK, garden_layout
from bert_pretrain.hub.convert.torch_file import layout_of

_GARDEN = Layout("TensorFlow 2, model garden", MARK, ())  # its rules depend on the names


def read_variables(prefix: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The variables of a checkpoint by name, float32, and the names of what is no weight (slots, counters).

    Raises ``ConfigError`` if it cannot be read, ``ModuleNotFoundError`` without tensorflow.
    """
    if find_spec("tensorflow") is None:
        raise ModuleNotFoundError("tensorflow reads these checkpoints", name="tensorflow")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "variables.safetensors"
        command = [sys.executable, "-m", tensorflow_reader.__name__, str(prefix), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        if done.returncode != 0:
            lines = (done.stdout if done.returncode == 2 else done.stderr).strip().splitlines()
            raise ConfigError(
                f"source {prefix} cannot be read by tensorflow ({lines[-1] if lines else done.returncode}); if a file "
                "is truncated or missing, copy .index and .data-* once more"
            )
        with safe_open(out, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.offset_keys()}
            skipped = json.loads(file.metadata()[tensorflow_reader.SKIPPED])
    return tensors, [name for name in skipped if not name.startswith("_CHECKPOINTABLE")]


def read(prefix: Path) -> Renamed:
    """The weights of a TensorFlow 1 or 2 checkpoint by their names in ``transformers``."""
    variables, skipped = read_variables(prefix)
    layout = layout_of(list(variables), (GOOGLE, _GARDEN))
    renamed = rename(variables, garden_layout(variables) if layout is _GARDEN else layout)
    renamed.left_out += skipped
    if layout is _GARDEN:
        query = next(name for name in variables if re.search(MARK, name))
        renamed.heads = variables[query].shape[1]
    return renamed
