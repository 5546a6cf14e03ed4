"""The checks of ``doctor`` that say what a maintainer asks first: which program, which system, which packages."""

import os
import platform
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from bert_pretrain.config import PretrainConfig
from bert_pretrain.control_group import memory_limit
from bert_pretrain.distributed.world import World
from bert_pretrain.doctor.finding import OK, Finding
from bert_pretrain.program import HERE, release, version_line

KNOWN_FAULTS = (
    (
        "torch",
        (2, 13),
        (2, 15),
        "compiled dropout repeats masks (pytorch issue 198333): speed.compile turns RAND4X off",
    ),
)
"""Known bugs: the package, its first affected and first fixed release, the bug and what this program does about it."""
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "h5py", "numba", "triton", "apex")
VARIABLES = ("CUDA_", "GLOO_", "HF_HUB_OFFLINE", "KMP_", "MKL_", "NCCL_", "OMP_", "PYTORCH_", "TORCH", "TRITON_")
"""Beginnings of the names of variables that change how a run computes or exchanges; none holds a secret."""


def program(config: PretrainConfig, world: World) -> Finding:
    """Version, commit and place of this program, and its extras."""
    lacking = {extra: missing for extra in ("data", "finetune", "study") if (missing := _missing(extra))}
    extras = [f"without the extra {extra} ({', '.join(missing)})" for extra, missing in lacking.items()]
    return Finding(OK, "; ".join([f"{version_line()} in {HERE.parent}", *extras]))


def versions(config: PretrainConfig, world: World) -> Finding:
    """Python and package versions, compared with ``KNOWN_FAULTS``."""
    found = ", ".join([f"Python {platform.python_version()}", *filter(None, map(_named, PACKAGES))])
    for package, first, fixed, fault in KNOWN_FAULTS:
        if first <= tuple(map(int, version(package).split(".")[:2])) < fixed:
            found += f"; {fault}"
    return Finding(OK, found)


def system(config: PretrainConfig, world: World) -> Finding:
    """Operating system, memory, and the variables that change how a run computes."""
    name = platform.freedesktop_os_release().get("PRETTY_NAME", "") if Path("/etc/os-release").exists() else ""
    facts = [name, f"Linux {platform.release()} {platform.machine()}", " ".join(platform.libc_ver())]
    memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available, total = (int(memory[key].split()[0]) << 10 for key in ("MemAvailable", "MemTotal"))
    limit = memory_limit()
    bound = f", {limit / 2**30:.1f} allowed to this process" if limit and limit < total else ""
    facts.append(f"{available / 2**30:.1f} of {total / 2**30:.1f} GiB memory available{bound}")
    facts += [f"{key}={value}" for key, value in sorted(os.environ.items()) if key.startswith(VARIABLES)]
    return Finding(OK, ", ".join(filter(None, facts)))


def _named(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return ""


def _missing(extra: str) -> list[str]:
    """The packages of ``extra`` that are not installed."""
    if release() == "unknown":
        return []
    wanted = [Requirement(text) for text in requires("bert-pretrain") or ()]
    own = [need.name for need in wanted if need.marker and need.marker.evaluate({"extra": extra})]
    return [name for name in own if not _named(name)]
