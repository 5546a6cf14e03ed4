"""Builds docker/Dockerfile.cpu with buildah, and uses the image.

    sudo .venv/bin/python scripts/prove_cpu_image.py
    sudo .venv/bin/python scripts/prove_cpu_image.py --base root.debootstrap   # where no registry can be reached

In the image, as its user: --version, doctor, prepare, training by two ranks that a signal stops, the resume, export,
fill-mask. There must be no C compiler. Takes minutes and 6 GB under --store, freed at the end.
"""

import shutil
import subprocess
from datetime import date

from repository_root import ROOT
from results_file import argument_parser, write_result

WHAT = "The image of docker/Dockerfile.cpu, built and used"
IMAGE = "localhost/bert-pretrain:cpu"
TEXT = (
    "mkdir -p $HOME && for i in $(seq 60); do for j in $(seq 20); do "
    'echo "Document $i says in sentence $j that word$((j * i % 97)) follows word$((j % 31)). Then it goes on."; '
    "done; echo; done > /tmp/text.txt"
)
PREPARE = (
    "bert-pretrain prepare corpus=text corpus.path=/tmp/text.txt out_dir=data/x sequence_lengths=[32] vocab_size=300 "
    "duplicates.near=false heldout_fraction=0.2"
)
OPTIONS = (
    "recipe=demo run_dir=runs/x data.dir=data/x data.sequence_length=32 "
    "model.vocab_size=$(wc -l < data/x/tokenizer/vocab.txt) batch.global_batch_size=16 schedule.total_steps=300 "
    "logging.every_steps=5"
)
TRAIN = f"PROCESSES=2 scripts/pretrain_node.sh {OPTIONS}"
STOP = (
    f"{TRAIN} > /tmp/log 2>&1 & pid=$!; for _ in $(seq 600); do grep -q '^step' /tmp/log && break; sleep 0.5; done; "
    "kill -TERM $pid; wait $pid; [ $? = 75 ] && grep '^stopped' /tmp/log"
)
SENTENCE = "Document 3 says in [MASK] 4 that word7 follows word9."


def main() -> None:
    """Build the image, use it, write the result."""
    parser = argument_parser(__doc__)
    parser.add_argument("--base", help="a Debian root, instead of the image that the file starts from")
    parser.add_argument("--store", default="/var/tmp/prove_cpu_image", help="directory for the layers")
    parser.add_argument("--volume", default=[], action="append", help="HOST:IMAGE:ro while building, such as wheels")
    parser.add_argument("--torch-index", help="instead of the file's TORCH_INDEX")
    given = parser.parse_args()
    places = ["--root", f"{given.store}/root", "--runroot", f"{given.store}/run", "--storage-driver", "vfs"]

    def buildah(*words: str) -> str:
        print("==", *words, flush=True)
        done = subprocess.run(["buildah", *places, *words], check=True, text=True, stdout=subprocess.PIPE)
        print(done.stdout, flush=True)
        return done.stdout.strip()

    text = (ROOT / "docker/Dockerfile.cpu").read_text(encoding="utf-8")
    base = next(line.split()[1] for line in text.splitlines() if line.startswith("FROM "))
    if given.base:
        scratch = buildah("from", "scratch")
        buildah("add", "-q", scratch, given.base, "/")
        buildah("commit", "-q", scratch, f"docker.io/library/{base}")
        buildah("rm", scratch)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, check=True, text=True, capture_output=True
    ).stdout.strip()
    arguments = [f"--build-arg=COMMIT={commit}", *(f"--volume={volume}" for volume in given.volume)]
    arguments += [f"--build-arg=TORCH_INDEX={given.torch_index}"] if given.torch_index else []
    how = ("--format=docker", "--isolation=chroot", "--pull=missing")
    buildah("bud", "-q", *how, *arguments, "-f", f"{ROOT}/docker/Dockerfile.cpu", "-t", IMAGE, str(ROOT))
    container = buildah("from", "--pull=never", IMAGE)

    def run(command: str) -> str:
        return buildah("run", "--isolation=chroot", container, "--", "bash", "-o", "pipefail", "-c", command)

    run("! command -v cc && ! command -v gcc && ! command -v nvcc && [ $(id -u) != 0 ]")
    version = run("bert-pretrain --version")
    assert commit in version, version
    for command in (TEXT, PREPARE, f"bert-pretrain doctor {OPTIONS}", STOP, f"{TRAIN} | grep -E '^resuming|^finished'"):
        run(command)
    run("bert-pretrain export run_dir=runs/x out_dir=runs/model")
    filled = run(f"bert-pretrain fill-mask model_dir=runs/model 'sentences=[\"{SENTENCE}\"]'").splitlines()[-1].strip()
    size = run("du -sm --one-file-system / 2> /dev/null | cut -f1 || true")
    steps = sum(line.split(" ")[0].isupper() for line in text.splitlines() if line[:1].isalpha())
    base = f"a clean {base} of debootstrap" if given.base else base
    write_result(ROOT / f"scripts/results/cpu_{date.today()}_image.json", WHAT, [
        {"shown": f"buildah built it from {base}: {steps} instructions, {int(size) / 1024:.1f} GiB"},
        {"shown": f"{version}; no C compiler; everything ran as the image's user, not as root; doctor found no fault"},
        {"shown": "prepared a corpus; trained two ranks, saved at SIGTERM (status 75), resumed to the end; exported"},
        {"shown": f"fill-mask on {SENTENCE!r}: {filled}"},
    ])  # fmt: skip
    subprocess.run(["buildah", *places, "rm", "--all"], check=True)
    shutil.rmtree(given.store)


if __name__ == "__main__":
    main()
