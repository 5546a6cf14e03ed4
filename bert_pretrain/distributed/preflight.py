"""Before any collective the ranks say what has to be the same on all of them, and what is wrong with one."""

import hashlib
import json
import platform
import socket
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist

from bert_pretrain.errors import ConfigError

_COMPARED = ("torch", "transformers", "numpy", "h5py")
_FAULTS = "faults"


def environment_facts(device: torch.device, options: str) -> dict[str, str]:
    """What has to be the same on all ranks, by the name under which a user knows it."""
    sources = hashlib.sha256()
    for path in sorted(Path(__file__).parent.parent.rglob("*.py")):
        sources.update(path.read_bytes())
    facts = {"Python": platform.python_version()} | {name: version(name) for name in _COMPARED}
    if device.type == "cuda":
        facts["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    facts |= {"the device": device.type, "bert_pretrain's source": sources.hexdigest()[:12]}
    return facts | {"the set of options": hashlib.sha256(options.encode()).hexdigest()[:12]}


def rank_label(rank: int) -> str:
    """Of which rank on which node a message is, in words that follow it."""
    return f" (rank {rank} on {socket.gethostname()})"


def check_ranks_agree(store: dist.Store, rank: int, size: int, fault: str, facts: dict[str, str]) -> str:
    """Before any collective: every rank says its fault and its ``facts``, rank 0 finds the first that is wrong.

    Returns what is wrong, the same on every rank; empty where nothing is. Costs ``size`` reads of a small value. Raises
    ``ConfigError`` where rank 0 does not answer.
    """
    store.set(f"here/{rank}", json.dumps([fault and fault + rank_label(rank), rank_label(rank), facts]))
    if rank > 0:
        try:
            return store.get(_FAULTS).decode()
        except dist.DistStoreError:
            raise ConfigError(f"rank 0 of {size} did not come; see the output of its node") from None
    verdict = ""
    for other in range(size):
        try:
            said, place, theirs = json.loads(store.get(f"here/{other}"))
        except dist.DistStoreError:
            said, place, theirs = f"rank {other} of {size} did not come; see the output of its node", "", facts
        unequal = [
            f"{name} is not the same on all nodes: {found} here, {theirs[name]} there{place}; give every node the "
            "same environment and command"
            for name, found in facts.items()
            if theirs.get(name) != found
        ]
        verdict = verdict or said or next(iter(unequal), "")
    store.set(_FAULTS, verdict)
    return verdict
