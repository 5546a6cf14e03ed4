#!/usr/bin/env bash
# Pretrain on several machines without a scheduler. Run it on each at about the same time:
#   scripts/pretrain_nodes.sh NODES NODE_RANK ADDRESS[:PORT] recipe=NAME [overrides]
# NODES machines; this one is NODE_RANK (0 to NODES - 1); ADDRESS of node 0, an IPv6 one in brackets if a port follows;
# PORT free on node 0 (default 29500).
# run_dir and data.dir must be on a shared disk. PROCESSES, INTERFACE, NUMA, JOIN_SECONDS: see node.sh.
set -euo pipefail
usage() { sed -n '2,6s/^# //p' "$0" >&2; exit 2; }
[ $# -ge 4 ] || usage
nodes=$1 node_rank=$2 place=$3
shift 3
if ! [[ $nodes =~ ^[1-9][0-9]*$ && $node_rank =~ ^[0-9]+$ ]] || ((node_rank >= nodes)); then
    echo "error: NODES is '$nodes' and NODE_RANK is '$node_rank'; allowed: NODES 1 or more, NODE_RANK 0 to NODES - 1" >&2
    exit 2
fi
address=$place port=29500
case $place in
    \[*\]:*) address=${place%:*} port=${place##*:} ;;
    \[*\] | *:*:*) ;; # IPv6 without a port
    *:*) address=${place%:*} port=${place##*:} ;;
esac
address=${address#[} address=${address%]}
if ! [[ $port =~ ^[0-9]+$ ]] || ((port < 1 || port > 65535)); then
    echo "error: the port in '$place' is '$port'; allowed: 1 to 65535; an IPv6 address with a port is [ADDRESS]:PORT" >&2
    exit 2
fi
exec "$(dirname "$0")/node.sh" "$nodes" "$node_rank" "$address" "$port" "$@"
