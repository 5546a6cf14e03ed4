#!/usr/bin/env bash
# The whole path: corpus, tokenizer, shards, pretraining, export, fill-mask. Existing results are reused.
# Options given here go to pretraining:
#   scripts/demo.sh optimizer.lr=0.02 run_dir=runs/faster
set -euo pipefail
cd "$(dirname "$0")/.."

data_dir=${DATA_DIR:-data/demo}
run_dir=runs/demo
for option in "$@"; do
    case $option in run_dir=*) run_dir=${option#run_dir=} ;; esac
done

step() { printf '\n== %s\n' "$*"; }

gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
processes=$((gpus > 0 ? gpus : 2))

step "1/4  corpus, tokenizer and masked shards -> $data_dir"
bert-pretrain prepare corpus=embedded out_dir="$data_dir" sequence_lengths=[64] vocab_size=4096 max_predictions=[20]
bert-pretrain verify dir="$data_dir" samples=2

step "2/4  pretraining with NVLAMB on $processes processes -> $run_dir"
# The plan, which the run prints itself: checks all in one process, so that a mistake gives one message.
bert-pretrain plan recipe=demo data.dir="$data_dir" "$@" devices="$processes" >/dev/null
OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node="$processes" -m bert_pretrain.pretrain recipe=demo data.dir="$data_dir" "$@"

step "3/4  export -> $run_dir/model"
bert-pretrain export run_dir="$run_dir" out_dir="$run_dir/model" overwrite=true

step "4/4  fill-mask on sentences that are not in the corpus"
sentences="'If the file does not [MASK] , an error is raised .'"
sentences+=", 'The default [MASK] is used if the argument is not given .'"
sentences+=", 'This function returns a new [MASK] with the same shape as the input .'"
sentences+=", 'The method must be [MASK] before the connection is closed .'"
bert-pretrain fill-mask model_dir="$run_dir/model" "sentences=[$sentences]"

step "done"
bert-pretrain report run_dir="$run_dir"
