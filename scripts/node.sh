#!/usr/bin/env bash
# One node's part of a run, for the other scripts: scripts/node.sh NODES NODE_RANK ADDRESS PORT [overrides]
# Finds the GPUs, checks what can be checked here, sets what NCCL and torchrun need, and becomes the launcher.
#   PROCESSES  ranks on this node; default: one for each GPU, one where there is none
#   INTERFACE  network interface between the nodes, where the first one found is the wrong one
#   NUMA       off: do not bind ranks to the processors near their GPU
#   PYTHON     the interpreter; default: .venv/bin/python where it is, else python3
#   JOIN_SECONDS  how long to wait for the other nodes; default 600
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "error: $* (node ${node_rank:-?}, $(hostname))" >&2; exit 2; }

[ $# -ge 4 ] || { sed -n '2,9s/^# //p' "$0" >&2; exit 2; }
nodes=$1 node_rank=$2 address=$3 port=$4
shift 4
python=${PYTHON:-.venv/bin/python}
[ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3
command -v "$python" > /dev/null || fail "PYTHON is '$python', which is no program; run make setup, or set PYTHON"

gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())' 2> /dev/null) ||
    fail "$python cannot import torch; run make setup on a disk that all nodes see, or set PYTHON"
processes=${PROCESSES:-$((gpus > 0 ? gpus : 1))}
[[ $processes =~ ^[1-9][0-9]*$ ]] || fail "PROCESSES is '$processes'; allowed: a number from 1 on"
((gpus == 0 || processes <= gpus)) || fail "PROCESSES is $processes, but there are $gpus GPUs; use PROCESSES=$gpus"

options=(--nproc-per-node="$processes")
if ((nodes == 1)); then
    options+=(--standalone)
else
    getent ahosts "$address" > /dev/null || fail "the address '$address' is not known here; give node 0's name or number"
    options+=(--nnodes="$nodes" --node-rank="$node_rank" --master-addr="$address" --master-port="$port")
    options+=(--rdzv-conf="timeout=${JOIN_SECONDS:-600}")
    if [ -n "${INTERFACE:-}" ]; then
        [ -e "/sys/class/net/$INTERFACE" ] ||
            fail "INTERFACE is '$INTERFACE'; there are: $(cd /sys/class/net && echo *)"
        export NCCL_SOCKET_IFNAME=$INTERFACE GLOO_SOCKET_IFNAME=$INTERFACE
    fi
    if [ -d /sys/class/infiniband ] && ((gpus > 0)); then # RDMA registers its buffers in locked memory
        ulimit -l unlimited 2> /dev/null || true
        [ "$(ulimit -l)" = unlimited ] || fail "memlock is $(ulimit -l) KiB; InfiniBand needs it unlimited (limits.conf)"
    fi
fi
if ((gpus > 0)) && [ "${NUMA:-on}" != off ] && command -v numactl > /dev/null &&
    [ -d /sys/devices/system/node/node1 ]; then
    options+=(--numa-binding=node)
fi
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}                   # NCCL's errors in words, no list of its choices
export TORCH_CPP_LOG_LEVEL=${TORCH_CPP_LOG_LEVEL:-ERROR} # the launcher says in one line what torch says in fifty
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}       # ranks share cores with NCCL's and the loader's threads

exec "$python" -m bert_pretrain.distributed.launch "${options[@]}" -m bert_pretrain.pretrain "$@"
