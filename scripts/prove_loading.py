"""Loads an export in environments with other versions of transformers, and compares what comes out.

    python scripts/prove_loading.py my-bert RESULT.json [PYTHON ...]

Each PYTHON is an interpreter with torch and transformers of any version; this one comes first. In each, ``AutoModel``,
``AutoModelForMaskedLM`` and ``AutoTokenizer`` load the folder, and the outputs on two sentences are compared with those
of the first.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from results_file import argument_parser, write_result
from safetensors.numpy import load_file

SENTENCES = ("The quick brown fox.", "A second, somewhat longer sentence of the pair: with 3 signs!")
LOAD = """
import json, sys
import torch, transformers
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

folder, sentences, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
transformers.logging.set_verbosity_error()
inputs = AutoTokenizer.from_pretrained(folder)(sentences, padding=True, return_tensors="pt")
with torch.no_grad():
    hidden = AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state
    logits = AutoModelForMaskedLM.from_pretrained(folder).eval()(**inputs).logits
save_file({"ids": inputs["input_ids"].contiguous(), "hidden": hidden, "logits": logits}, out)
print(transformers.__version__, torch.__version__)
"""


def main() -> None:
    """Load in each environment, compare."""
    parser = argument_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("result", type=Path, help="JSON file to write")
    parser.add_argument("pythons", nargs="*", help="interpreters")
    given = parser.parse_args()
    rows: list[dict[str, str]] = []
    first: dict[str, Any] = {}
    for python in [sys.executable, *given.pythons]:
        with tempfile.TemporaryDirectory() as place:
            out = Path(place) / "found.safetensors"
            words = [python, "-c", LOAD, str(given.folder.resolve()), json.dumps(SENTENCES), str(out)]
            versions = subprocess.run(words, capture_output=True, text=True, check=True, cwd=place).stdout.split()
            found = load_file(out)
        first = first or found
        if (found["ids"] != first["ids"]).any():
            sys.exit(f"FAILED: transformers {versions[0]} gives other token ids")
        difference = {name: float(abs(found[name] - first[name]).max()) for name in ("hidden", "logits")}
        if max(difference.values()) > 1e-5:
            sys.exit(f"FAILED: transformers {versions[0]} gives other outputs: {difference}")
        vectors, logits = (f"{value:.1e}" for value in difference.values())
        row = {"transformers": versions[0], "torch": versions[1], "token ids": "equal"}
        rows.append({**row, "largest difference of vectors": vectors, "of logits": logits})
    write_result(given.result, "An export in several versions of transformers", rows)


if __name__ == "__main__":
    main()
