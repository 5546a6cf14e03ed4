#!/usr/bin/env bash
# Runs a command in the container, with the docker options that training needs:
#   docker/run.sh scripts/pretrain_node.sh recipe=bert_base_1gpu
#   docker/run.sh torchrun --standalone --nproc-per-node=8 -m bert_pretrain.pretrain recipe=bert_base_1gpu
#   docker/run.sh bert-pretrain prepare corpus=text corpus.path=/text out_dir=data/mine
# data/ and runs/ of the current directory are mounted; files written there belong to you.
#   IMAGE   default bert-pretrain, or bert-pretrain:cpu without a GPU
#   GPUS    all | none | a list such as 0,1; default all, or none without a GPU
#   MOUNTS  further mounts, HOST:CONTAINER, separated by spaces; e.g. MOUNTS="$HOME/text:/text:ro"
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,9s/^# //p' "$0" >&2; exit 2; }
command -v docker > /dev/null || { echo "error: docker is not installed; without it, run make setup and the same command" >&2; exit 2; }
docker info > /dev/null 2>&1 || { echo "error: docker's daemon does not answer; start it, or ask for access" >&2; exit 2; }

found=none
if nvidia-smi -L > /dev/null 2>&1; then found=all; fi
gpus=${GPUS:-$found}
image=${IMAGE:-$([ "$gpus" = none ] && echo bert-pretrain:cpu || echo bert-pretrain)}
docker image inspect "$image" > /dev/null 2>&1 ||
    { echo "error: there is no IMAGE '$image'; docker build -f docker/Dockerfile${image#bert-pretrain} -t $image ." | sed 's/Dockerfile:/Dockerfile./' >&2; exit 2; }

mkdir -p data runs
options=(--rm --init --user "$(id -u):$(id -g)"
    --ipc=host                               # shared memory of the loader and NCCL; docker's default is 64 MiB
    --ulimit memlock=-1 --ulimit stack=67108864 # InfiniBand needs locked memory; NVIDIA recommends the stack size
    --network=host                           # connections to ranks on other nodes
    --mount "type=bind,source=$PWD/data,target=/bert-pretrain/data"
    --mount "type=bind,source=$PWD/runs,target=/bert-pretrain/runs")
case $gpus in
    none) ;;
    all) options+=(--gpus all) ;;
    *) options+=(--gpus "\"device=$gpus\"") ;;
esac
[ ! -d /dev/infiniband ] || [ "$gpus" = none ] || options+=(--device=/dev/infiniband)
for mount in ${MOUNTS:-}; do options+=(--volume "$mount"); done
for name in WANDB_API_KEY HF_TOKEN PROCESSES INTERFACE NUMA JOIN_SECONDS NCCL_DEBUG; do
    [ -z "${!name:-}" ] || options+=(--env "$name")
done
[ ! -t 0 ] || options+=(--interactive --tty)
exec docker run "${options[@]}" "$image" "$@"
