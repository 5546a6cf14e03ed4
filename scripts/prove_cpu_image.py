"""The steps of docker/Dockerfile.cpu in a clean Debian, where no docker engine is at hand.

``sudo .venv/bin/python scripts/prove_cpu_image.py [--torch-index URL] [--wheels DIR]`` makes a Debian root with
debootstrap, carries out the file's own instructions in it through chroot (RUN, COPY, ENV, ARG, WORKDIR, USER; what it
does not know is an error), and then, as the image's user, prepares a small corpus, trains, stops at a signal, goes on,
and exports. There must be no C compiler in that root. Some minutes, 3 GB under /var/tmp, removed at the end.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from results_file import write_result

ROOT = Path(__file__).resolve().parent.parent
WHAT = "The steps of docker/Dockerfile.cpu without docker"
FROM = re.compile(r"debian:([a-z]+)-\d+-slim$")


class Image:
    """A root folder, and the state that a Dockerfile's instructions build up."""

    def __init__(self, root: Path, arguments: dict[str, str]) -> None:
        self.root, self.arguments = root, arguments
        self.environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        self.workdir, self.user = "/", "0"

    def run(self, command: str) -> None:
        """``command`` in the root, as the user and in the folder of this moment."""
        words = ["env", "-i", *(f"{key}={value}" for key, value in {**self.arguments, **self.environment}.items())]
        inside = f"cd {shlex.quote(self.workdir)} || exit 1\n{command}"
        subprocess.run(
            [
                "chroot",
                f"--userspec={self.user}:{self.user}",
                self.root,
                *words,
                "bash",
                "-o",
                "pipefail",
                "-c",
                inside,
            ],
            check=True,
        )

    def expanded(self, text: str) -> str:
        """``text`` with the build's arguments and variables put in."""
        known = {**self.arguments, **self.environment}
        return re.sub(r"\$\{(\w+)\}", lambda found: known[found[1]], text)

    def copy(self, words: list[str]) -> None:
        """COPY as docker does: a folder's content, or files into a folder."""
        *sources, target = words
        place = self.root / Path(self.workdir, target).relative_to("/")
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, place)

    def instruct(self, name: str, rest: str) -> None:
        """Carry out one instruction."""
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
            sys.exit(f"FAILED: no way to carry out {name} here")


def instructions(path: Path) -> list[tuple[str, str]]:
    """The file's instructions: comments dropped, continued lines joined."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    pairs = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
    return [(name, rest.strip()) for name, rest in pairs]


def prove(image: Image) -> None:
    """What a user does first, as the image's user."""
    image.run("! command -v cc && ! command -v gcc && ! command -v nvcc && [ $(id -u) != 0 ]")
    image.run(
        "mkdir -p $HOME && for i in $(seq 60); do for j in $(seq 20); do "
        'echo "Document $i says in sentence $j that word$((j * i % 97)) follows word$((j % 31)). Then it goes on."; '
        "done; echo; done > /tmp/text.txt"
    )
    image.run(
        "python -m data_prep.prepare corpus=text corpus.path=/tmp/text.txt out_dir=data/x sequence_lengths=[32] "
        "vocab_size=300 duplicates.near=false heldout_fraction=0.2"
    )
    options = "recipe=demo run_dir=runs/x data.dir=data/x data.sequence_length=32 "
    options += "model.vocab_size=$(wc -l < data/x/tokenizer/vocab.txt) batch.global_batch_size=16 "
    options += "schedule.total_steps=300 logging.every_steps=5"
    image.run(
        f"PROCESSES=2 scripts/pretrain_node.sh {options} > /tmp/log & pid=$!; "
        "for _ in $(seq 120); do grep -q '^step' /tmp/log && break; sleep 0.5; done; kill -TERM $pid; wait $pid; "
        "[ $? = 75 ] && grep 'stopped as asked' /tmp/log"
    )
    image.run(f"PROCESSES=2 scripts/pretrain_node.sh {options} | grep -E 'going on|finished'")
    image.run("python -m bert_pretrain.hub.export run_dir=runs/x out_dir=runs/model")


def shown(steps: int, suite: str, size: float) -> list[dict[str, str]]:
    """What has been seen where ``prove`` has returned."""
    return [
        {"shown": f"{steps} instructions carried out in a clean {suite} of debootstrap, packages {size:.1f} GiB"},
        {"shown": "no C compiler in it; everything below ran as the image's user, not as root"},
        {"shown": "a corpus prepared; two ranks trained, saved at SIGTERM (status 75), went on to the end; exported"},
    ]


def main() -> None:
    """Build the root, carry out the steps, use the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--torch-index", help="where torch's wheel is, in place of the file's TORCH_INDEX")
    parser.add_argument("--wheels", help="a folder with torch's wheel, where that address is out of reach")
    given = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("error: debootstrap and chroot want root")
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
        image.environment["PIP_CERT"] = "/etc/certificates-of-the-host.crt"  # a proxy's own may be among them
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
