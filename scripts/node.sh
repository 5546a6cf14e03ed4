#!/usr/bin/env bash
# Starts the ranks of one node; called by the other scripts: scripts/node.sh NODES NODE_RANK ADDRESS PORT [overrides]
# Counts the GPUs, checks this node, sets what NCCL and torchrun need, and executes the launcher.
#   PROCESSES  ranks on this node; default: one per GPU, or one without GPUs
#   INTERFACE  network interface between the nodes, if the first one found is not the right one
#   NUMA       off: do not bind ranks to the CPU cores near their GPU
#   PYTHON     the interpreter; default: .venv/bin/python if it exists, else python3
#   JOIN_SECONDS  how long to wait for the other nodes; default 600
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "error: $* (node ${node_rank:-?}, $(hostname))" >&2; exit 2; }

[ $# -ge 4 ] || { sed -n '2,9s/^# //p' "$0" >&2; exit 2; }
nodes=$1 node_rank=$2 address=$3 port=$4
shift 4
python=${PYTHON:-.venv/bin/python}
[ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3
command -v "$python" > /dev/null || fail "PYTHON is '$python', which cannot be executed; run make setup, or set PYTHON"

gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())' 2> /dev/null) ||
    fail "$python cannot import torch; run make setup on a shared disk, or set PYTHON"
processes=${PROCESSES:-$((gpus > 0 ? gpus : 1))}
[[ $processes =~ ^[1-9][0-9]*$ ]] || fail "PROCESSES is '$processes'; allowed: 1 or more"
((gpus == 0 || processes <= gpus)) || fail "PROCESSES is $processes, but there are $gpus GPUs; use PROCESSES=$gpus"

options=(--nproc-per-node="$processes")
if ((nodes == 1)); then
    options+=(--standalone)
else
    getent ahosts "$address" > /dev/null || fail "the address '$address' is not known here; give the host name or IP address of node 0"
    options+=(--nnodes="$nodes" --node-rank="$node_rank" --master-addr="$address" --master-port="$port")
    options+=(--rdzv-conf="timeout=${JOIN_SECONDS:-600}")
    if [ -n "${INTERFACE:-}" ]; then
        [ -e "/sys/class/net/$INTERFACE" ] ||
            fail "INTERFACE is '$INTERFACE'; allowed: $(cd /sys/class/net && echo *)"
        export NCCL_SOCKET_IFNAME=$INTERFACE GLOO_SOCKET_IFNAME=$INTERFACE
    fi
    if [ -d /sys/class/infiniband ] && ((gpus > 0)); then # RDMA needs locked memory
        ulimit -l unlimited 2> /dev/null || true
        [ "$(ulimit -l)" = unlimited ] || fail "memlock is $(ulimit -l) KiB; InfiniBand needs it unlimited (limits.conf)"
    fi
fi
if ((gpus > 0)) && [ "${NUMA:-on}" != off ] && command -v numactl > /dev/null &&
    [ -d /sys/devices/system/node/node1 ]; then
    options+=(--numa-binding=node)
fi
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}                   # print NCCL's errors, but not its configuration
export TORCH_CPP_LOG_LEVEL=${TORCH_CPP_LOG_LEVEL:-ERROR} # the launcher prints one line where torch prints fifty
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}       # ranks share cores with the threads of NCCL and the loader

exec "$python" -m bert_pretrain.distributed.launch "${options[@]}" -m bert_pretrain.pretrain "$@"
