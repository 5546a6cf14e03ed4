#!/usr/bin/env bash
# Proves and measures the program on one GPU, in at most ten minutes:
#
#   scripts/prove_gpu.sh --wheels [NAME...]       once, with a network: what the GPU machine lacks, into wheels/
#   scripts/prove_gpu.sh [STAGE...]               there, without a network: all stages, or those named
#   scripts/prove_gpu.sh --rehearse [STAGE...]    on a CPU, with a tiny model
#
# Stages: tests kernel optimizer step_base_128 step_large_128 step_large_512 beside_trainer batch_64k resume.
# Each has a time limit and writes its JSON when it is done, so that a cut leaves what was done; one that fails does not
# end the others. Results: OUT (scripts/results/gpu_DATE), with a page of all in page.md. Exit status 1: one failed.
# PYTHON (python3) has torch for CUDA and transformers. LIMIT (580): seconds in all, beyond which no stage runs. A
# rehearsal has ten times the time, since a machine for tests may be busy.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-python3}
STAGES="tests kernel optimizer step_base_128 step_large_128 step_large_512 beside_trainer batch_64k resume"

if [[ ${1-} == --wheels ]]; then # all of pure Python: they fit any version and machine
    mapfile -t locked < <(grep -E '^(antlr4-python3-runtime|hydra-core|omegaconf)==' requirements.lock)
    exec "$PYTHON" -m pip wheel --no-deps --wheel-dir wheels "${locked[@]}" "${@:2}"
fi
kind=gpu times=1 title="One GPU"
if [[ ${1-} == --rehearse ]]; then
    kind=rehearsal times=10 title="Rehearsal on a CPU with tiny models, which take the names of the large"
    shift
fi
for name in "$@"; do
    [[ " $STAGES " == *" $name "* ]] || { echo "no stage $name; stages: $STAGES" >&2; exit 2; }
done
WANTED=${*:-$STAGES}
OUT=${OUT:-scripts/results/${kind}_$(date +%F)}
END=$((SECONDS + times * ${LIMIT:-580}))
WORK=$(mktemp -d -t prove_gpu.XXXXXX)
trap 'rm -rf "$WORK"' EXIT
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" OMP_WAIT_POLICY=passive TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
if [[ $kind == gpu ]] && ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "$PYTHON has no torch that finds a CUDA device; set PYTHON, or give --rehearse" >&2
    exit 2
fi
if [[ $kind == gpu && -d wheels ]]; then
    # Not a virtual environment: the given python3 may be one, and another made from it would not see its packages.
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target "$WORK/packages" wheels/*.whl || exit 1
    export PYTHONPATH="$PYTHONPATH:$WORK/packages"
fi

if [[ $kind == gpu ]]; then
    words=30522 optimizer=("models=[base,large]" rounds=2 steps=5) rounds=4 turns=(--seconds 4 --rounds 2)
    base=(model=base) large=(model=large) seconds=75 batch_64k=(model=large)
    step_base_128=(128 1024 256) step_large_128=(128 256 128) step_large_512=(512 64 32)
    beside=(128 256) resumed=(128 256 60 "batch.micro_batch_size=auto")
    settings=(--trainer "bf16, sdpa, by length") # "bf16, sdpa, compiled" would compile for more than a minute
else
    words=512 optimizer=("models=[tiny]" rounds=1 steps=1 device=cpu) rounds=3 turns=(--seconds 0.2 --rounds 1)
    tiny=(model=tiny model.vocab_size=512 model.hidden_size=32 model.intermediate_size=64 device=cpu)
    tiny+=(precision.compute=fp32) # bf16 on a CPU that has no instructions for it takes minutes
    base=("${tiny[@]}") large=("${tiny[@]}" model.num_hidden_layers=3)
    step_base_128=(16 16 8) step_large_128=(16 16 8) step_large_512=(32 8 4)
    beside=(16 8) resumed=(16 8 24 "batch.micro_batch_size=4")
    export TRITON_INTERPRET=1 # for the kernels
    seconds=0 batch_64k=("${large[@]}" batch.global_batch_size=256 optimizer.lr=0.1)
    settings=(--trainer "fp32, sdpa, by length")
fi

mkdir -p "$OUT"
wanted() { [[ " $WANTED " == *" $1 "* ]]; }

data="" failed=0
stage() { # NAME LIMIT COMMAND...
    local name=$1 limit=$((times * $2)) left=$((END - SECONDS)) began=$SECONDS status=124
    shift 2
    wanted "$name" || return 0
    ((limit = limit < left ? limit : left))
    if ((limit > 3)); then
        timeout --kill-after=5 "$limit" "$@" >"$OUT/$name.log" 2>&1 </dev/null
        status=$?
    fi
    case $status in
        0) state=passed ;;
        124 | 137) state="cut at its limit of $limit s" ;;
        *) state="failed with status $status: $(grep -v '^[[:space:]]*$' "$OUT/$name.log" | tail -n 1 | cut -c 1-200)" ;;
    esac
    ((status == 0)) || failed=1
    printf '%-16s%5d s  %s\n' "$name" $((SECONDS - began)) "$state"
    "$PYTHON" scripts/prove_gpu_page.py "$OUT" --title "$title" --stage "$name" --seconds $((SECONDS - began)) \
        --state "$state"
}

shards() { # LENGTH: makes them where they are not yet; prints the options that name them
    [[ -d $WORK/data_$1 ]] || "$PYTHON" scripts/random_shards.py "$WORK/data_$1" $words "$1" 4096 || exit 1
    echo "data.dir=$WORK/data_$1 data.sequence_length=$1"
}

step() { # NAME LENGTH BATCH MICRO_BATCH MODEL_OPTION...
    local data=""
    wanted "$1" && data=$(shards "$2")
    # shellcheck disable=SC2086 # two words
    stage "$1" 80 "$PYTHON" -m bert_pretrain.bench step recipe=bert_large_64k_phase1 "${@:5}" $data \
        batch.global_batch_size="$3" batch.micro_batch_size="$4" rounds=$rounds out_dir="$OUT/$1"
}

run=("$PYTHON" scripts/prove_gpu_stages.py)
stage tests 110 "${run[@]}" tests "$OUT/tests.json"
if command -v compute-sanitizer >/dev/null && [[ $kind == gpu ]]; then
    # Without torch's cache of memory, so that the end of a tensor is the end of an allocation.
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    stage kernel 60 compute-sanitizer --error-exitcode 9 "${run[@]}" kernel "$OUT/kernel.json" --under compute-sanitizer
    unset PYTORCH_NO_CUDA_MEMORY_CACHING
else
    stage kernel 60 "${run[@]}" kernel "$OUT/kernel.json" --under "no other program: no compute-sanitizer"
fi
stage optimizer 60 "$PYTHON" scripts/bench_other_lambs.py "${optimizer[@]}" out_dir="$OUT"
step step_base_128 "${step_base_128[@]}" "${base[@]}"
step step_large_128 "${step_large_128[@]}" "${large[@]}"
step step_large_512 "${step_large_512[@]}" "${large[@]}"
wanted beside_trainer && data=$(shards "${beside[0]}")
# shellcheck disable=SC2086 # two words
stage beside_trainer 90 "$PYTHON" scripts/beside_trainer.py --minutes 0 "${turns[@]}" "${settings[@]}" \
    --title "BERT-base beside transformers.Trainer" "$WORK/beside" "$OUT/beside_trainer.json" \
    recipe=bert_large_64k_phase1 "${base[@]}" model.next_sentence=false $data \
    batch.global_batch_size="${beside[1]}" batch.micro_batch_size="${beside[1]}"
stage batch_64k 130 "${run[@]}" --seconds $seconds batch_64k "$OUT/batch_64k.json" "${batch_64k[@]}"
wanted resume && data=$(shards "${resumed[0]}")
# shellcheck disable=SC2086 # two words
stage resume 140 "${run[@]}" resume "$OUT/resume.json" recipe=bert_large_64k_phase1 "${base[@]}" $data \
    batch.global_batch_size="${resumed[1]}" schedule.total_steps="${resumed[2]}" "${resumed[3]}" \
    checkpoint.every_steps=1000 training.evaluate_every_steps=1000 precision.deterministic=true
echo "$OUT/page.md"
exit $failed
