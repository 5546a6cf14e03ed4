"""Small shards and configurations that the tests share."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# Busy OpenMP teams on shared cores look like a hang; children inherit this.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

if not torch.cuda.is_available():
    # Triton's kernels run in its interpreter; read when they are first imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from bert_pretrain.data.shard_directory import write_manifest
from bert_pretrain.data.shards import ShardHeader, write_shard
from bert_pretrain.distributed.preemption import StopRequest
from bert_pretrain.files import retry
from tests.forked import HANGS, ROOT, Forked
from tests.hub_server import TOKEN, HubServer

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")  # no test asserts a time

VOCAB_SIZE, LENGTH, PREDICTIONS = 97, 16, 3


class StopAfter(StopRequest):
    """Requests a stop when asked for the ``count``-th time; it is asked in each step, micro-batch and evaluation."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    @property
    def requested(self) -> bool:
        self.count -= 1
        return self.count <= 0


def random_arrays(rng: np.random.Generator, samples: int, length: int = LENGTH, predictions: int = PREDICTIONS) -> dict:
    """Shard content of a small language in which each word is followed by its successor: it can be learned."""
    first = rng.integers(10, VOCAB_SIZE, samples)
    ids = (first[:, None] - 10 + np.arange(length)) % (VOCAB_SIZE - 10) + 10
    lengths = rng.integers(length // 2, length + 1, samples)
    mask = np.arange(length) < lengths[:, None]
    ids[:, 0] = 2
    ids[np.arange(samples), lengths - 1] = 3
    segments = (np.arange(length) >= (lengths // 2)[:, None]) & mask
    positions = np.zeros((samples, predictions), np.int64)
    labels = np.zeros((samples, predictions), np.int64)
    ids *= mask
    for row in range(samples):
        count = rng.integers(1, predictions + 1)
        chosen = np.sort(rng.permutation(np.arange(1, lengths[row] - 1))[:count])
        positions[row, :count], labels[row, :count] = chosen, ids[row, chosen]
        ids[row, chosen] = 4
    return {
        "input_ids": ids,
        "input_mask": mask.astype(np.int64),
        "segment_ids": segments.astype(np.int64),
        "masked_lm_positions": positions,
        "masked_lm_ids": labels,
        "next_sentence_labels": rng.integers(0, 2, samples),
    }


def header(split: str = "train", **changes: object) -> ShardHeader:
    values: dict = {
        "sequence_length": LENGTH,
        "max_predictions": PREDICTIONS,
        "vocab_size": VOCAB_SIZE,
        "vocab_hash": "v",
        "tokenizer_hash": "t",
        "masked_lm_prob": 0.15,
        "whole_word_masking": False,
        "short_seq_prob": 0.1,
        "dupe_factor": 1,
        "seed": 1,
        "split": split,
    }
    return ShardHeader(**{**values, **changes})


def make_shards(directory: Path, train: tuple[int, ...] = (50, 37, 13), heldout: tuple[int, ...] = (20,)) -> Path:
    """A shard directory with a manifest; sizes in samples."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    rows = []
    for split, sizes in (("train", train), ("heldout", heldout)):
        for number, size in enumerate(sizes):
            path = directory / f"{split}_{number:05d}.hdf5"
            rows.append(write_shard(path, random_arrays(rng, size), header(split)))
    write_manifest(directory, {"shards": rows})
    return directory


def assert_as_new_files(folder: Path) -> None:
    """All files in ``folder`` have the mode that the umask gives to new ones."""
    probe = folder.parent / "a_new_file"
    probe.touch()
    expected = probe.stat().st_mode
    probe.unlink()
    assert {path.name: oct(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()} == {
        path.name: oct(expected) for path in folder.rglob("*") if path.is_file()
    }


LONG = (
    "test_data_engine",
    "test_launch",
    "test_compile",
    "test_end_to_end",
    "test_resume",
    "test_finetune_resume",
    "test_finetune",
    "test_numbers",
    "test_documents",
    "test_nvlamb",
    "test_nvlamb_triton",
    "test_prepare",
    "test_trainer",
)
"""Modules that begin the run, so that no worker is left alone with one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long modules first, then the other integration tests, then the rest."""
    order = {f"{name}.py": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: (order.get(item.path.name, len(LONG)), item.path.parent.name != "integration"))


@pytest.fixture(scope="session")
def shard_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 training samples in three shards and 20 held out; read-only by agreement."""
    return make_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A server that is the hub for this process, with a cache of its own and without pauses between attempts."""
    from huggingface_hub import constants, hf_api
    from huggingface_hub.utils import _http

    with HubServer() as server:
        for module in (constants, hf_api.constants):
            monkeypatch.setattr(module, "ENDPOINT", server.address)
            monkeypatch.setattr(module, "HF_HUB_DISABLE_XET", True)
            template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template)
            monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(retry, "PAUSES", (0.0,))
        monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
        yield server


TEST_RECIPE = (
    "recipe=demo",
    "data.sequence_length=16",
    "data.masking=static",
    "data.block_size=8",
    f"model.vocab_size={VOCAB_SIZE}",
    "model.hidden_size=16",
    "model.intermediate_size=32",
    "model.max_position_embeddings=16",
    # A key bias has no effect, so its gradient is rounding alone, and phi_min would make a full step of that.
    "optimizer.phi_min=null",
    "batch.global_batch_size=12",
    "batch.micro_batch_size=4",
    "schedule.total_steps=6",
    "training.evaluate_every_steps=3",
    "checkpoint.every_steps=3",
    "logging.every_steps=1",
    "device=cpu",
)


def run_module(module: str, *options: str, processes: int = 0, timeout: float = HANGS) -> subprocess.CompletedProcess:
    """Run ``python -m module options`` in a forked process, or in one for each rank."""
    return Forked(module, *options, ranks=processes).wait(timeout)


def succeed(module: str, *options: str, processes: int = 0) -> str:
    """``run_module``, which must end with status 0; what was printed."""
    done = run_module(module, *options, processes=processes)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def metric_rows(run_dir: Path) -> list[dict]:
    """All rows of a run's ``metrics.jsonl``, without the times, which no two runs share."""
    timed = {"tokens_per_second", "mfu", "matrix_peak_share", "data_wait_share"}
    parsed = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in timed} for row in parsed]


def run_command(*command: str, timeout: float = HANGS) -> subprocess.CompletedProcess:
    """Run a command in a new interpreter, as a user does: ``python`` is the one that runs the tests."""
    words = [sys.executable if word == "python" else word for word in command]
    return subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, check=False
    )


BITS = (1 << 64) - 1


class KeyedRandom:
    """splitmix64 in Python's whole numbers, keyed as the product states."""

    def __init__(self, *key: int) -> None:
        self.state = key[0]
        for part in key[1:]:
            self.state = self.bits() ^ part
        self.state = self.bits()

    def bits(self) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) & BITS
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & BITS
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & BITS
        return z ^ (z >> 31)

    def below(self, limit: int) -> int:
        return (self.bits() >> 32) * limit >> 32

    def unit(self) -> float:
        return (self.bits() >> 11) / 2.0**53
