#!/usr/bin/env bash
# Tests the SLURM scripts with a real SLURM on this machine (a controller and two node daemons): slurm_pretrain.sbatch
# over two nodes is stopped by its signal, requeued and resumed until the end, and its weights equal those of an
# uninterrupted run; scancel leaves a valid checkpoint; two phases run as a chain. As root on Debian, after make setup:
#   apt-get install --no-install-recommends slurm-wlm munge
# Takes ten minutes on two cores. Writes scripts/results/cpu_DATE_slurm.json; PARTS="two_phases preparation" runs only
# those and writes nothing. Touches nothing else outside a temporary folder, and stops every daemon that it starts.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD work=$(mktemp -d /tmp/prove_slurm.XXXXXX)
chmod 755 "$work"
fail() { echo "FAILED: $*; see $work" >&2; trap stop EXIT; exit 1; }
passed() { echo "ok: $*" | tee -a "$work/passed"; }
[ "$(id -u)" = 0 ] || { echo "error: SLURM's daemons need root" >&2; exit 2; }
for program in munged slurmctld slurmd sbatch; do
    command -v "$program" > /dev/null || { echo "error: no $program; apt-get install slurm-wlm munge" >&2; exit 2; }
done
[ -x .venv/bin/python ] || { echo "error: no .venv; run make setup" >&2; exit 2; }

pids=() alone=()
stop() { for ((i = ${#pids[@]} - 1; i >= 0; i--)); do kill "${pids[i]}" 2> /dev/null || true; done; }
trap 'stop; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

mkdir -p "$work"/{state,munge,spool0,spool1}
dd if=/dev/urandom of="$work/munge/key" bs=128 count=1 status=none
chmod 700 "$work/munge"
chmod 600 "$work/munge/key"
name=$(hostname -s)
cat > "$work/slurm.conf" << END
ClusterName=proof
SlurmctldHost=$name(127.0.0.1)
SlurmctldPort=27817
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge/socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool-%n
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd-%n.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
KillWait=60
MailProg=/bin/true
NodeName=n0 NodeHostname=$name NodeAddr=127.0.0.1 Port=27820 CPUs=1
NodeName=n1 NodeHostname=$name NodeAddr=127.0.0.1 Port=27821 CPUs=1
PartitionName=all Nodes=n0,n1 Default=YES MaxTime=INFINITE State=UP
END
export SLURM_CONF=$work/slurm.conf
munged --foreground --force --key-file="$work/munge/key" --socket="$work/munge/socket" --pid-file="$work/munge/pid" \
    --log-file="$work/munge/log" --seed-file="$work/munge/seed" > /dev/null 2>&1 &
pids+=($!)
chmod 755 "$work/munge"
until munge -S "$work/munge/socket" -n > /dev/null 2>&1; do sleep 0.2; done
slurmctld -D > /dev/null 2>&1 &
pids+=($!)
for node in n0 n1; do
    slurmd -D -N "$node" > /dev/null 2>&1 &
    pids+=($!)
done
for _ in $(seq 60); do [ "$(sinfo -h -o %D%t 2> /dev/null)" = 2idle ] && break; sleep 1; done
[ "$(sinfo -h -o %D%t)" = 2idle ] || fail "the nodes did not start"
passed "SLURM $(sinfo --version | cut -d' ' -f2), $(sinfo -h -o '%D nodes: %N')"

export PYTHON=$root/.venv/bin/python INTERFACE=lo PYTHONPATH=$root
"$PYTHON" -c "import sys; from pathlib import Path; from tests.conftest import make_shards
make_shards(Path(sys.argv[1]), train=(3000, 2000))" "$work/data"
options=(recipe=demo device=cpu model.vocab_size=97 "data.dir=$work/data" data.sequence_length=16 data.masking=static
    model.max_position_embeddings=16 model.hidden_dropout_prob=0.1 batch.global_batch_size=128 logging.every_steps=10
    training.evaluate_every_steps=300 checkpoint.every_steps=100000 precision.compute=fp32)
steps=${STEPS:-500}
resume_pattern='^.* from .*, step \([0-9]*\)$' # of the message of a run that resumes

state() { scontrol show job "$1" | sed -n 's/.*JobState=\([A-Z]*\).*/\1/p'; }
wait_for() { # JOB SECONDS STATE...
    local job=$1 seconds=$2 now
    shift 2
    for _ in $(seq "$seconds"); do
        now=$(state "$job")
        case " $* " in *" $now "*) return ;; esac
        sleep 1
    done
    fail "job $job is $now after $seconds s, not $*"
}
valid_step() { # the step of the newest valid checkpoint of a run
    "$PYTHON" -c "import sys; from pathlib import Path; from bert_pretrain.checkpoint.store import *
store = CheckpointStore(Path(sys.argv[1]) / 'checkpoints', 1, None)
found = store.newest_valid(lambda text: sys.exit(text)); print(load_progress(found).step if found else 0)" "$1"
}

# Stopped by the job's own signal, which SLURM sends up to a minute early, 45 to 105 seconds after the start
requeue() {
    job=$(sbatch --parsable --nodes=2 --time=3 --signal=B:USR1@75 --output="$work/job.out" scripts/slurm_pretrain.sbatch \
        "${options[@]}" "run_dir=$work/run" "schedule.total_steps=$steps")
    wait_for "$job" 1500 COMPLETED FAILED TIMEOUT CANCELLED NODE_FAIL
    restarts=$(scontrol show job "$job" | sed -n 's/.*Restarts=\([0-9]*\).*/\1/p')
    cat "$work/job.out"
    [ "$(state "$job")" = COMPLETED ] || fail "the job is $(state "$job")"
    ((restarts >= 1)) || fail "it was never requeued: give it more STEPS"
    mapfile -t stopped < <(sed -n 's/^stopped.* step \([0-9]*\).*/\1/p' "$work/job.out")
    mapfile -t resumed < <(sed -n "s/$resume_pattern/\1/p" "$work/job.out")
    [ "${stopped[*]}" = "${resumed[*]}" ] || fail "stopped after ${stopped[*]}, resumed from ${resumed[*]}"
    [ "$(valid_step "$work/run")" = "$steps" ] || fail "no valid last checkpoint"
    passed "two nodes to step $steps through $restarts requeue(s), stopped and resumed after step ${stopped[*]}"
    for node in 0 1; do # as under SLURM, each with as many threads as the machine has: they determine the rounding
        scripts/pretrain_nodes.sh 2 "$node" 127.0.0.1:27900 "${options[@]}" "run_dir=$work/uninterrupted" \
            "schedule.total_steps=$steps" > "$work/uninterrupted-$node.out" 2>&1 &
        alone[node]=$!
    done
    for node in 0 1; do
        wait "${alone[node]}" || { cat "$work/uninterrupted-$node.out"; fail "the uninterrupted run failed"; }
    done
    "$PYTHON" -c "import sys, torch; from safetensors.torch import load_file
one, other = (load_file(f'{run}/checkpoints/step_{int(sys.argv[3]):08d}/model/model.safetensors') for run in sys.argv[1:3])
sys.exit(not all(torch.equal(one[name], other[name]) for name in one))" "$work/run" "$work/uninterrupted" "$steps" ||
        fail "the weights differ from those of the uninterrupted run"
    passed "the weights equal those of an uninterrupted run, bit for bit"
}

# scancel
cancelled() {
    job=$(sbatch --parsable --nodes=2 --time=9 --output="$work/cancelled.out" scripts/slurm_pretrain.sbatch \
        "${options[@]}" "run_dir=$work/cancelled" schedule.total_steps=100000)
    for _ in $(seq 120); do grep -q '"step": 20,' "$work/cancelled/metrics.jsonl" 2> /dev/null && break; sleep 1; done
    scancel "$job"
    wait_for "$job" 90 CANCELLED
    while pgrep -f "run_dir=$work/cancelled" > /dev/null; do sleep 1; done
    step=$(valid_step "$work/cancelled")
    ((step >= 20)) || { cat "$work/cancelled.out"; fail "scancel left no valid checkpoint"; }
    [ "$(state "$job")" = CANCELLED ] || fail "the cancelled job is $(state "$job")"
    passed "scancel left a valid checkpoint of step $step, and the job was not requeued"
}

# The run's own time limit
own_limit() {
    job=$(sbatch --parsable --nodes=2 --time=30 --output="$work/limit.out" scripts/slurm_pretrain.sbatch "${options[@]}" \
        "run_dir=$work/limit" schedule.total_steps=100000 training.stop_after_minutes=0.3)
    for _ in $(seq 400); do grep -qs "$resume_pattern" "$work/limit.out" && break; sleep 1; done
    grep -q 'saved; requeueing the job' "$work/limit.out" || { cat "$work/limit.out"; fail "it was not requeued"; }
    grep -q "$resume_pattern" "$work/limit.out" || fail "it was requeued, but did not resume"
    scancel "$job"
    wait_for "$job" 90 CANCELLED
    passed "stopped by training.stop_after_minutes, the job was requeued and resumed"
}

# A killed rank
lost() {
    job=$(sbatch --parsable --nodes=2 --time=30 --output="$work/lost.out" scripts/slurm_pretrain.sbatch "${options[@]}" \
        "run_dir=$work/lost" schedule.total_steps=100000 checkpoint.every_steps=10 communication.timeout_seconds=20)
    for _ in $(seq 200); do [ -d "$work/lost/checkpoints/step_00000010" ] && break; sleep 1; done
    kill -9 "$(pgrep -f "bert_pretrain.pretrain .*run_dir=$work/lost" | tail -n 1)"
    for _ in $(seq 400); do grep -qs "$resume_pattern" "$work/lost.out" && break; sleep 1; done
    grep -q 'a rank was lost; requeueing the job' "$work/lost.out" || { cat "$work/lost.out"; fail "it was not requeued"; }
    grep -q "$resume_pattern" "$work/lost.out" || fail "it was requeued, but did not resume"
    scancel "$job"
    wait_for "$job" 90 CANCELLED
    passed "one rank killed: the job was requeued and resumed from step $(sed -n "s/$resume_pattern/\1/p" "$work/lost.out")"
}

# Two phases as a chain of jobs
two_phases() {
    line=$(scripts/slurm_two_phases.sh --nodes=2 --time=30 --output="$work/phase-%j.out" -- "${options[@]}" \
        "run_dir=$work/one" schedule.total_steps=30 -- "${options[@]}" "run_dir=$work/two" "init_from=$work/one" \
        schedule.total_steps=20 optimizer.lr=0.005)
    job=$(sed -n 's/.*phase 2 is job \([0-9]*\).*/\1/p' <<< "$line")
    wait_for "$job" 300 COMPLETED FAILED CANCELLED
    [ "$(state "$job")" = COMPLETED ] || { cat "$work"/phase-*.out; fail "phase 2 is $(state "$job")"; }
    grep -q "weights from $work/one/checkpoints/step_00000030" "$work/phase-$job.out" || fail "phase 2 did not start from phase 1"
    passed "two phases as a chain of jobs: $line"
}

# Data preparation on both nodes with Dask
preparation() {
    if ! "$PYTHON" -c 'import distributed' 2> /dev/null || ! grep -q '^engine:' configs/prepare.yaml; then
        echo "skipped data preparation: Dask is not installed"
        return
    fi
    for document in $(seq 200); do
        for sentence in $(seq 40); do echo "Sentence $sentence of text $document names $((document * sentence % 997)) things."; done
        echo
    done > "$work/text.txt"
    prepare=(corpus=text "corpus.path=$work/text.txt" "sequence_lengths=[32]" vocab_size=400 duplicates.near=false)
    job=$(WORKERS=1 WORKER_MEMORY_GB=2 sbatch --parsable --nodes=2 --time=9 --output="$work/prepare.out" \
        scripts/slurm_prepare.sbatch "${prepare[@]}" "out_dir=$work/prepared")
    wait_for "$job" 400 COMPLETED FAILED CANCELLED
    [ "$(state "$job")" = COMPLETED ] || { cat "$work/prepare.out"; fail "data preparation is $(state "$job")"; }
    "$PYTHON" -m data_prep.prepare "${prepare[@]}" "out_dir=$work/prepared-here" > /dev/null
    diff -r --exclude=corpus --exclude=manifest.json "$work/prepared" "$work/prepared-here" > "$work/prepare.diff" ||
        fail "the shards differ from those of one machine" # the manifest has seconds in it
    passed "shards made on both nodes with Dask equal those of one machine, byte for byte"
}

for part in ${PARTS:-requeue cancelled own_limit lost two_phases preparation}; do "$part"; done
if [ -z "${PARTS:-}" ]; then
    PYTHONPATH=$root/scripts "$PYTHON" -c "import sys, time; from pathlib import Path; from results_file import write_result
shown = [{'shown': line.removeprefix('ok: ')} for line in Path(sys.argv[1]).read_text().splitlines()]
write_result(Path(f'scripts/results/cpu_{time.strftime(\"%Y-%m-%d\")}_slurm.json'),
             'slurm_pretrain.sbatch, slurm_two_phases.sh and slurm_prepare.sbatch on a real SLURM', shown,
             'A controller and two node daemons on one machine.', 'scripts/prove_slurm.sh')" "$work/passed"
fi
