"""Executes docker/Dockerfile.cpu without docker, in a clean Debian.

    sudo .venv/bin/python scripts/prove_cpu_image.py

Creates a Debian root with debootstrap and executes the file's instructions in it through chroot (RUN, COPY, ENV, ARG,
WORKDIR, USER; any other is an error). Then, as the image's user, prepares a small corpus, trains, stops the run with a
signal, resumes it, and exports. There must be no C compiler in that root. Takes some minutes and 3 GB under /var/tmp,
which are freed at the end.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from repository_root import ROOT
from results_file import argument_parser, write_result

WHAT = "docker/Dockerfile.cpu executed without docker"
FROM = re.compile(r"debian:([a-z]+)-\d+-slim$")


class Image:
    """A root directory, and the state that a Dockerfile's instructions change."""

    def __init__(self, root: Path, arguments: dict[str, str]) -> None:
        self.root, self.arguments = root, arguments
        self.environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        self.workdir, self.user = "/", "0"

    def run(self, command: str) -> None:
        """Run ``command`` in the root, as the current user and in the current directory."""
        words = ["env", "-i", *(f"{key}={value}" for key, value in {**self.arguments, **self.environment}.items())]
        inside = f"cd {shlex.quote(self.workdir)} || exit 1\n{command}"
        chroot = ["chroot", f"--userspec={self.user}:{self.user}", str(self.root), *words]
        subprocess.run([*chroot, "bash", "-o", "pipefail", "-c", inside], check=True)

    def expanded(self, text: str) -> str:
        """``text`` with build arguments and environment variables substituted."""
        known = {**self.arguments, **self.environment}
        return re.sub(r"\$\{(\w+)\}", lambda found: known[found[1]], text)

    def copy(self, words: list[str]) -> None:
        """COPY as docker does: the content of a directory, or files into a directory."""
        *sources, name = words
        target = self.root / Path(self.workdir, name).relative_to("/")
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, target)

    def instruct(self, name: str, rest: str) -> None:
        """Execute one instruction."""
        print(f"== {name} {rest[:100]}", flush=True)
        if name == "RUN":
            self.run(rest)
        elif name == "COPY":
            self.copy(rest.split())
        elif name == "ENV":
            pairs = [word.partition("=") for word in shlex.split(rest)]
            self.environment |= {key: self.expanded(value) for key, _, value in pairs}
        elif name == "ARG":
            key, _, value = rest.partition("=")
            self.arguments.setdefault(key, value)
        elif name == "WORKDIR":
            self.workdir = rest
        elif name == "USER":
            self.user = self.expanded(rest)
        elif name not in ("FROM", "SHELL"):
            sys.exit(f"FAILED: the instruction {name} is not supported")


def instructions(path: Path) -> list[tuple[str, str]]:
    """The file's instructions, without comments, with continuation lines joined."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    pairs = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
    return [(name, rest.strip()) for name, rest in pairs]


def prove(image: Image) -> None:
    """Check for compilers, prepare, train, stop, resume, export; all as the image's user."""
    image.run("! command -v cc && ! command -v gcc && ! command -v nvcc && [ $(id -u) != 0 ]")
    image.run(
        "mkdir -p $HOME && for i in $(seq 60); do for j in $(seq 20); do "
        'echo "Document $i says in sentence $j that word$((j * i % 97)) follows word$((j % 31)). Then it goes on."; '
        "done; echo; done > /tmp/text.txt"
    )
    image.run(
        "bert-pretrain prepare corpus=text corpus.path=/tmp/text.txt out_dir=data/x sequence_lengths=[32] "
        "vocab_size=300 duplicates.near=false heldout_fraction=0.2"
    )
    options = "recipe=demo run_dir=runs/x data.dir=data/x data.sequence_length=32 "
    options += "model.vocab_size=$(wc -l < data/x/tokenizer/vocab.txt) batch.global_batch_size=16 "
    options += "schedule.total_steps=300 logging.every_steps=5"
    image.run(
        f"PROCESSES=2 scripts/pretrain_node.sh {options} > /tmp/log & pid=$!; "
        "for _ in $(seq 120); do grep -q '^step' /tmp/log && break; sleep 0.5; done; kill -TERM $pid; wait $pid; "
        "[ $? = 75 ] && grep '^stopped' /tmp/log"
    )
    image.run(f"PROCESSES=2 scripts/pretrain_node.sh {options} | grep -E ' from .*, step |^finished'")
    image.run("bert-pretrain export run_dir=runs/x out_dir=runs/model")


def shown(steps: int, suite: str, size: float) -> list[dict[str, str]]:
    """The rows of the result, if ``prove`` succeeded."""
    return [
        {"shown": f"{steps} instructions executed in a clean {suite} of debootstrap, packages {size:.1f} GiB"},
        {"shown": "it has no C compiler; everything below ran as the image's user, not as root"},
        {"shown": "prepared a corpus; trained two ranks, saved at SIGTERM (status 75), resumed to the end; exported"},
    ]


def main() -> None:
    """Build the root, execute the instructions, use the result."""
    parser = argument_parser(__doc__)
    parser.add_argument("--torch-index", help="index of torch's wheel, instead of the file's TORCH_INDEX")
    parser.add_argument("--wheels", help="directory with torch's wheel, if no index can be reached")
    given = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("error: debootstrap and chroot need root")
    steps = instructions(ROOT / "docker/Dockerfile.cpu")
    suite = FROM.match(steps[0][1])
    assert suite is not None, "the CPU image starts from a dated Debian"
    root = Path(tempfile.mkdtemp(prefix="prove_cpu_image.", dir="/var/tmp"))
    root.chmod(0o755)
    mounted = []
    try:
        subprocess.run(["debootstrap", "--variant=minbase", suite[1], root], check=True, stdout=subprocess.DEVNULL)
        for name in ("/proc", "/sys", "/dev", *([given.wheels] if given.wheels else [])):
            (root / name[1:]).mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "--bind", name, root / name[1:]], check=True)
            mounted.append(root / name[1:])
        for name in ("/etc/resolv.conf", "/etc/hosts"):
            shutil.copy(name, root / name[1:])
        shutil.copy("/etc/ssl/certs/ca-certificates.crt", root / "etc/certificates-of-the-host.crt")
        image = Image(root, {"TORCH_INDEX": given.torch_index} if given.torch_index else {})
        image.environment["PIP_CERT"] = "/etc/certificates-of-the-host.crt"  # may include that of a proxy
        if given.wheels:
            image.environment["PIP_FIND_LINKS"] = given.wheels
        for name, arguments in steps:
            image.instruct(name, arguments)
        prove(image)
        size = sum(path.lstat().st_size for path in (root / "opt/venv").rglob("*")) / 2**30
        write_result(ROOT / f"scripts/results/cpu_{date.today()}_image.json", WHAT, shown(len(steps), suite[1], size))
    finally:
        for path in reversed(mounted):
            subprocess.run(["umount", path], check=False)
        if not any(os.path.ismount(path) for path in mounted):
            shutil.rmtree(root)


if __name__ == "__main__":
    main()
