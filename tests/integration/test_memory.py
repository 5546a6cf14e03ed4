"""65,536 sequences in one step take no more memory than 1,024."""

from pathlib import Path

import numpy as np
import pytest

from bert_pretrain.data.shard_directory import write_manifest
from bert_pretrain.data.shards import write_shard
from tests.conftest import header, random_arrays, succeed

LENGTH, PREDICTIONS = 64, 10


@pytest.fixture(scope="module")
def long_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("long")
    arrays = random_arrays(np.random.default_rng(1), 2000, LENGTH, PREDICTIONS)
    shape = header(sequence_length=LENGTH, max_predictions=PREDICTIONS)
    write_manifest(directory, {"shards": [write_shard(directory / "train_00000.hdf5", arrays, shape)]})
    return directory


def peak_kib(run_dir: Path, data: Path, batch: int) -> int:
    options = ["recipe=demo_64k", f"data.dir={data}", "data.masking=static", f"batch.global_batch_size={batch}",
               "batch.micro_batch_size=256", "schedule.total_steps=1", "model.vocab_size=97", "model.hidden_size=8",
               "model.num_hidden_layers=1", "model.intermediate_size=8", "model.num_attention_heads=1",
               f"run_dir={run_dir}", "device=cpu"]  # fmt: skip
    out = succeed("tests.integration.measured_run", *options)
    assert f"global batch  {batch:,} samples" in out
    return int(out.split("peak ")[-1])


def test_memory_does_not_grow_with_the_batch(tmp_path: Path, long_shards: Path) -> None:
    """As int64 tensors the large batch alone would take 115 MB; the process takes about 620 MB."""
    small = peak_kib(tmp_path / "small", long_shards, 1024)
    large = peak_kib(tmp_path / "large", long_shards, 65_536)
    assert large < 1.1 * small
