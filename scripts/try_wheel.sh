#!/usr/bin/env bash
# Builds the wheel, installs it into an empty environment outside the repository, and uses it from an empty folder as a
# new user would. First with torch and numpy alone, for the optimizer; then with all that the wheel asks for.
#   scripts/try_wheel.sh [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
here=$PWD
place=$(mktemp -d)
trap 'chmod -R u+w "$place"; rm -rf "$place"' EXIT
chmod 755 "$place"
step() { printf '\n== %s (%d s)\n' "$1" "$SECONDS"; }

step "build the wheel"
"$python" -m venv "$place/venv"
pip() { "$place/venv/bin/python" -m pip --disable-pip-version-check -qq "$@"; }
pip wheel --no-deps --wheel-dir "$place" .
wheel=("$place"/bert_pretrain-*.whl)

step "the optimizer with torch and numpy alone"
pip install "$(grep '^torch==' requirements.lock)" "$(grep '^numpy==' requirements.lock)"
pip install --no-deps "${wheel[0]}"
cd "$place"
mkdir empty
cat > step.py <<'PYTHON'
import sys

import torch

from bert_pretrain.optim import NVLamb

weight = torch.nn.Parameter(torch.ones(300, 200))
weight.grad = torch.full_like(weight, 0.5)
NVLamb([weight], lr=0.1, weight_decay=0.0).step()
# Every element moves by lr * ||w|| / ||u||, with u = 1 everywhere: from 1.0 to 0.9.
assert torch.allclose(weight, torch.full_like(weight, 0.9), atol=1e-4), weight
print("one step of NVLamb;", "numba" if "numba" in sys.modules else "no numba")
PYTHON
"$place/venv/bin/python" step.py

step "everything that the wheel asks for"
pip install --constraint "$here/requirements.lock" "${wheel[0]}[data]"

step "the compiled optimizer without a home, on files that cannot be written"
chmod -R a-w venv
without_rights=()
if [ "$(id -u)" = 0 ]; then # root may write anything, unless it gives that right up
    without_rights=(setpriv --bounding-set "-dac_override,-dac_read_search" --inh-caps "-dac_override,-dac_read_search")
fi
"${without_rights[@]}" env -i HOME=/proc/none venv/bin/python step.py
chmod -R u+w venv

step "the commands, from an empty folder"
cd empty
PATH="$place/venv/bin:$PATH"
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
bert-pretrain --version
bert-pretrain recipes ls
bert-pretrain plan recipe=demo
"$place/venv/bin/python" - <<'PYTHON'
import pydoc_data.topics
from pathlib import Path

Path("texts").mkdir()
with open("texts/manual.txt", "w", encoding="utf-8") as file:
    for topic in pydoc_data.topics.topics.values():
        file.writelines(" ".join(paragraph.split()) + "\n" for paragraph in topic.split("\n\n"))
        file.write("\n")
PYTHON
bert-pretrain prepare corpus=text corpus.path=texts/ out_dir=data/mine 'sequence_lengths=[64]' vocab_size=1000 engine.workers=1
bert-pretrain recipes copy demo mine
options=(recipe=mine --config-dir my_configs data.dir=data/mine model.vocab_size=1000 schedule.total_steps=20)
bert-pretrain pretrain "${options[@]}" training.evaluate_every_steps=10 checkpoint.every_steps=10 logging.every_steps=10
bert-pretrain export run_dir=runs/mine out_dir=my-bert
bert-pretrain fill-mask model_dir=my-bert 'sentences=["The [MASK] is a list."]'
step "done"
