#!/usr/bin/env bash
# Proves bert-pretrain convert against TensorFlow: makes a virtual environment with tensorflow-cpu and the model garden
# (1.7 GB, removed at the end unless a folder is given), lets both write checkpoints, compares logits, and runs the tests
# that skip without tensorflow.
#   scripts/prove_convert.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-$(mktemp -d)}
[ $# -ge 1 ] || trap 'rm -rf "$folder"' EXIT
python=$folder/bin/python
if [ ! -x "$python" ]; then
  .venv/bin/python -m venv "$folder"
  "$python" -m pip install --quiet --constraint requirements-convert.lock "tensorflow-cpu>=2.16,<3" tf-keras
  # Without its 20 dependencies, of which the networks need gin alone.
  "$python" -m pip install --quiet --no-deps tf-models-official gin-config
fi
# Packages that are not in the new environment come from .venv: torch, transformers, pytest.
.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
  > "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
export TF_USE_LEGACY_KERAS=1 TF_CPP_MIN_LOG_LEVEL=3  # the model garden is written for Keras 2
export PYTHONPATH=$PWD OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1
rm -rf "$folder/checkpoints"
"$python" scripts/prove_convert.py write "$folder/checkpoints"
"$python" scripts/prove_convert.py compare "$folder/checkpoints"
"$python" -m pytest -q tests/bert_pretrain/hub/test_convert_tensorflow.py
