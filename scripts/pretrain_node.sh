#!/usr/bin/env bash
# Pretrain on this machine, one process for each GPU (or PROCESSES=N): scripts/pretrain_node.sh recipe=NAME [overrides]
# Ends with 0 when done; with 75 after SIGTERM or SIGUSR1, saved: the same command goes on; with 2 for a mistake.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
exec "$(dirname "$0")/node.sh" 1 0 localhost 0 "$@"
