#!/usr/bin/env bash
# Pretrain on this machine, one process per GPU (or PROCESSES=N): scripts/pretrain_node.sh recipe=NAME [overrides]
# Exit status: 0 when done; 75 after SIGTERM or SIGUSR1, saved, run the same command to continue; 2 for a mistake.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
exec "$(dirname "$0")/node.sh" 1 0 localhost 0 "$@"
