"""Preflight: before the first collective, check that no rank has an error and that all have the same versions, sources
and options."""

import hashlib
import json
import platform
import socket
import time
from contextlib import suppress
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist

from bert_pretrain.errors import ConfigError

_COMPARED = ("torch", "transformers", "numpy", "h5py")
_RESULT = "preflight/result"
_TIMEOUT = timedelta(minutes=30)


def environment_facts(device: torch.device, options: str) -> dict[str, str]:
    """What must be the same on all ranks, by the name that a message gives it."""
    sources = hashlib.sha256()
    for path in sorted(Path(__file__).parent.parent.rglob("*.py")):
        sources.update(path.read_bytes())
    facts = {"the device": device.type, "Python": platform.python_version()}
    facts |= {name: version(name) for name in _COMPARED}
    if device.type == "cuda":
        facts["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    facts["bert_pretrain's source"] = sources.hexdigest()[:12]
    return facts | {"the set of options": hashlib.sha256(options.encode()).hexdigest()[:12]}


def rank_label(rank: int) -> str:
    """`` (rank 3 on HOST)``: added to a message that concerns one rank."""
    return f" (rank {rank} on {socket.gethostname()})"


def check_ranks_agree(
    store: dist.Store, rank: int, size: int, error: str, facts: dict[str, str], timeout: timedelta = _TIMEOUT
) -> str:
    """Exchange ``error`` and ``facts`` of all ranks; the first problem found, the same text on every rank, or "".

    Rank 0 compares: it reads ``size`` small values, all within ``timeout``. The others wait twice as long, so
    that rank 0 can say who is missing. Raises ``ConfigError`` if rank 0 does not answer.
    """
    store.set(f"preflight/{rank}", json.dumps([error and error + rank_label(rank), rank_label(rank), facts]))
    if rank > 0:
        try:
            store.wait([_RESULT], 2 * timeout)
            result = store.get(_RESULT).decode()
            store.set(f"preflight/read/{rank}", "")
            return result
        except dist.DistStoreError:
            raise ConfigError(_missing(0, size)) from None
    deadline = time.monotonic() + timeout.total_seconds()
    problems = [_find_problem(store, other, size, facts, deadline) for other in range(size)]
    result = next(filter(None, problems), "")
    store.set(_RESULT, result)
    present = [other for other in range(1, size) if problems[other] != _missing(other, size)]
    if result and present:  # this node exits now, and the store with it: the others have to read the result before
        with suppress(dist.DistStoreError):
            store.wait([f"preflight/read/{other}" for other in present], timedelta(seconds=10))
    return result


def _find_problem(store: dist.Store, rank: int, size: int, facts: dict[str, str], deadline: float) -> str:
    try:
        store.wait([f"preflight/{rank}"], timedelta(seconds=max(0.1, deadline - time.monotonic())))
        error, label, theirs = json.loads(store.get(f"preflight/{rank}"))
    except dist.DistStoreError:
        return _missing(rank, size)
    differing = [name for name in facts if theirs.get(name) != facts[name]]
    if error or not differing:
        return str(error)
    name = differing[0]
    return (
        f"{name} is not the same on all nodes: {facts[name]} on rank 0, but {theirs.get(name)}{label}; give every "
        "node the same environment and command"
    )


def _missing(rank: int, size: int) -> str:
    return f"rank {rank} of {size} did not connect in time; see the output of its node"
