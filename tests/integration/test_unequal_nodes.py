"""What one node alone does not see or cannot do ends all ranks in one message that names the rank.

Two nodes on this machine, each in a folder of its own, so that a relative path stands for a disk of that node.
"""

import hashlib
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from bert_pretrain.data.shard_directory import write_manifest
from bert_pretrain.data.shards import write_shard
from tests.conftest import TEST_RECIPE, VOCAB_SIZE, header, random_arrays, succeed
from tests.forked import two_nodes


@dataclass
class Case:
    """Options of both nodes, and the message about which rank."""

    options: tuple[str, ...]
    rank: int
    message: str


def ended(place: Path, data: Path, module: str, case: Case) -> list[tuple[int, str]]:
    """Status and output of both nodes."""
    folders = (place / "node_0", place / "node_1")
    for folder in folders:
        folder.mkdir(exist_ok=True)
    nodes = two_nodes(folders, module, *TEST_RECIPE, f"data.dir={data}", "run_dir=run", *case.options)
    return [(node.returncode, node.stdout + node.stderr) for node in (node.wait() for node in nodes)]


CASES = {
    "tokenizer": Case(("data.masking=dynamic", "data.tokenizer=tokenizer"), 1, "data.tokenizer is 'tokenizer'"),
    "init_from": Case(("init_from=before",), 1, "init_from is 'before'"),
    "checkpoints": Case(("schedule.total_steps=6",), 1, "run_dir must lie on a file system that all nodes share"),
    "run_dir": Case(("run_dir=a_file",), 0, "run_dir a_file is a file, not a directory"),
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Shards for both nodes, and on node 0 only the tokenizer that they were made with."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = "".join(f"{word}\n" for word in [*special, *(f"w{i}" for i in range(len(special), VOCAB_SIZE))])
    (tmp_path / "node_0/tokenizer").mkdir(parents=True)
    (tmp_path / "node_0/tokenizer/vocab.txt").write_text(vocabulary)
    made_with = hashlib.sha256(vocabulary.encode()).hexdigest()
    rng, rows = np.random.default_rng(3), []
    (tmp_path / "data").mkdir()
    for split, samples in (("train", 60), ("heldout", 10)):
        path = tmp_path / "data" / f"{split}_00000.hdf5"
        rows.append(write_shard(path, random_arrays(rng, samples), header(split, vocab_hash=made_with)))
    write_manifest(tmp_path / "data", {"shards": rows})
    return tmp_path / "data"


@pytest.mark.parametrize("name", CASES)
def test_all_ranks_exit_with_one_message(tmp_path: Path, data: Path, name: str) -> None:
    case, first = CASES[name], tmp_path / "node_0"
    (first / "a_file").write_text("mine")
    if name in ("init_from", "checkpoints"):
        run_dir = first / ("before" if name == "init_from" else "run")
        succeed("bert_pretrain.pretrain", *TEST_RECIPE, f"data.dir={data}", f"run_dir={run_dir}")
    nodes = ended(tmp_path, data, "bert_pretrain.pretrain", case)
    output = "".join(out for _, out in nodes)
    assert [status for status, _ in nodes] == [2, 2], output
    (message,) = [line for line in output.splitlines() if "error: " in line]
    assert case.message in message
    assert message.endswith(f"(rank {case.rank} on {socket.gethostname()})")
    assert "Traceback" not in output


@pytest.mark.parametrize("differing", ["the set of options", "h5py"])
def test_a_difference_between_nodes_is_reported(tmp_path: Path, data: Path, differing: str) -> None:
    """The message comes once, on node 0, before anything is trained or written."""
    metadata = tmp_path / "old/h5py-0.1.dist-info/METADATA"  # found before the real one on node 1
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: h5py\nVersion: 0.1\n")
    nodes = two_nodes(
        (tmp_path, tmp_path), "bert_pretrain.pretrain", *TEST_RECIPE, f"data.dir={data}", "run_dir=run",
        last=("optimizer.lr=0.01", "optimizer.lr=0.01" if differing == "h5py" else "optimizer.lr=0.02"),
        python_path=str(metadata.parent.parent) if differing == "h5py" else "",
    )  # fmt: skip
    first, second = (node.wait() for node in nodes)
    assert (first.returncode, second.returncode) == (2, 2), first.stderr
    (message,) = [line for line in first.stderr.splitlines() if "error: " in line]
    assert f"{differing} is not the same on all nodes" in message
    assert "rank 1 on" in message
    assert "error: " not in second.stderr
    assert not (tmp_path / "run").exists()


def test_a_dead_node_is_named_by_the_other(tmp_path: Path, data: Path) -> None:
    options = (*TEST_RECIPE, f"data.dir={data}", "run_dir=run", "schedule.total_steps=100000")
    limits = ("checkpoint.every_steps=100000", "communication.timeout_seconds=20")
    first, second = two_nodes((tmp_path, tmp_path), "bert_pretrain.pretrain", *options, *limits)
    metrics = tmp_path / "run/metrics.jsonl"
    while first.is_running() and not (metrics.exists() and '"step": 5,' in metrics.read_text()):
        time.sleep(0.05)
    second.signal(0, signal.SIGKILL)
    done = first.wait()
    assert done.returncode == 76, done.stderr
    (message,) = [line for line in done.stderr.splitlines() if "error: " in line]
    assert message.startswith("error: rank 1 on ")
    assert "sent its last heartbeat in step " in message
    assert "rerun the same command to resume from the newest checkpoint" in message
    assert "Traceback" not in done.stderr


def test_the_doctor_names_the_rank_in_the_line_of_the_check(tmp_path: Path, data: Path) -> None:
    (first, out), (second, silent) = ended(tmp_path, data, "bert_pretrain.doctor", CASES["tokenizer"])
    assert (first, second) == (1, 1), out + silent
    (line,) = [line for line in out.splitlines() if line.startswith("fail")]
    assert line.startswith("fail  two steps")
    assert CASES["tokenizer"].message in line
    assert line.endswith(f"(rank 1 on {socket.gethostname()})")
    assert "Traceback" not in out + silent
