"""Which device a process gets, and what it is told before its first use."""

import multiprocessing
import os
import resource
from multiprocessing.connection import Connection

import pytest
import torch

from bert_pretrain.distributed.device import keep_freed_memory, pick_device, set_up_device
from bert_pretrain.errors import ConfigError


def test_too_few_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto", 1, 2) == torch.device("cuda", 1)
    for local_rank in range(4):  # every rank of the node finds it, so that the first one can print it
        with pytest.raises(ConfigError, match="4 processes on a node with 2 GPUs"):
            pick_device("auto", local_rank, 4)


@pytest.mark.parametrize("given", [{}, {"PYTORCH_CUDA_ALLOC_CONF": "a:1"}, {"PYTORCH_ALLOC_CONF": "b:2"}])
def test_expandable_segments_are_asked_for_before_cuda_starts(monkeypatch: pytest.MonkeyPatch, given: dict) -> None:
    """Unless the user has set the allocator's options, under either name."""
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    monkeypatch.setattr(os, "environ", dict(given))
    seen: list[dict] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: seen.append(dict(os.environ)))
    set_up_device(torch.device("cuda", 0), 1, 1)
    expected = given or {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert {name: seen[0][name] for name in names if name in seen[0]} == expected


def _page_faults(answer: Connection) -> None:
    """Send the page faults of steps with 8 tensors of 16 MB each: as it is, and with memory kept."""
    found = []
    for prepare in (lambda: None, keep_freed_memory):
        prepare()
        for step in range(6):
            if step == 2:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            [torch.ones(1 << 22) for _ in range(8)]
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    answer.send(found)


def test_freed_memory_is_kept() -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_page_faults, args=(sender,))  # not pytest's malloc
    process.start()
    given_back, kept = receiver.recv()
    process.join()
    assert given_back >= 4 * 8 * 2**24 // 2**21, "a fault for each page, of at most 2 MB"
    assert kept < given_back / 100
