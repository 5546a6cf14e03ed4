"""``python -m bert_pretrain.hub.convert.tensorflow_reader PREFIX OUT``: TensorFlow checkpoint to safetensors.

Runs as a process of its own: tensorflow and triton, which torch brings, cannot be loaded into one (both carry LLVM, and
the process crashes). Prints one line and exits with 2 if the checkpoint cannot be read.
"""

import json
import re
import sys

import numpy as np
from safetensors.numpy import save_file

SKIPPED = "skipped"
"""The metadata of the file that lists the names of what was not read."""
_SLOTS = re.compile(r"/(adam_[mv]|lamb_[mv])$|/\.OPTIMIZER_SLOT/|^optimizer/|^_CHECKPOINTABLE_OBJECT_GRAPH$")


def main(prefix: str, out: str) -> None:
    """Write the variables of the checkpoint ``prefix``, as float32, but for optimizer slots and counters."""
    import tensorflow

    variables, skipped = {}, []
    try:
        reader = tensorflow.train.load_checkpoint(prefix)
        types = reader.get_variable_to_dtype_map()
        for name in sorted(types):
            if _SLOTS.search(name) or not types[name].is_floating:
                skipped.append(name)
                continue
            variables[name] = np.ascontiguousarray(reader.get_tensor(name).astype("float32"))
    except Exception as error:  # tensorflow's errors have no common class but this
        print(" ".join(str(error).split())[:160])
        sys.exit(2)
    save_file(variables, out, {SKIPPED: json.dumps(skipped)})


if __name__ == "__main__":
    main(*sys.argv[1:])
