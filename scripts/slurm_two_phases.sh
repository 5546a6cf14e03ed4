#!/usr/bin/env bash
# Two phases as two SLURM jobs; the second starts when the first succeeds, however often it was requeued:
#   scripts/slurm_two_phases.sh [sbatch's options] -- recipe=PHASE1 [overrides] -- recipe=PHASE2 [overrides]
# e.g. --nodes=32 --gpus-per-node=8 --time=4:00:00 -- recipe=bert_large_64k_phase1 -- recipe=bert_large_64k_phase2
set -euo pipefail
cd "$(dirname "$0")/.."
parts=("" "" "") part=0 # words of each part, quoted
for word in "$@"; do
    if [ "$word" = -- ]; then
        part=$((part + 1))
        continue
    fi
    ((part < 3)) && parts[part]+=" $(printf %q "$word")"
done
if ((part != 2)) || [ -z "${parts[1]}" ] || [ -z "${parts[2]}" ]; then
    echo "error: two recipes are needed, each after a --" >&2
    sed -n '2,4s/^# //p' "$0" >&2
    exit 2
fi
eval "options=(${parts[0]}) first=(${parts[1]}) second=(${parts[2]})"
# shellcheck disable=SC2154  # set by eval, from words that printf quoted
one=$(sbatch --parsable "${options[@]}" scripts/slurm_pretrain.sbatch "${first[@]}")
one=${one%%;*}
# shellcheck disable=SC2154
two=$(sbatch --parsable --dependency="afterok:$one" --kill-on-invalid-dep=yes "${options[@]}" \
    scripts/slurm_pretrain.sbatch "${second[@]}")
echo "phase 1 is job $one, phase 2 is job ${two%%;*}, which starts when $one succeeds"
