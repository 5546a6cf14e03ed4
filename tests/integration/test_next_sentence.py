"""``model.next_sentence=false``: a run on two ranks, its metrics, resume, report and export."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from bert_pretrain.data.dataset import report_single_segments
from bert_pretrain.data.shard_directory import write_manifest
from bert_pretrain.data.shards import write_shard
from tests.bert_pretrain.data.test_loader import opened
from tests.conftest import TEST_RECIPE, header, metric_rows, random_arrays, succeed


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, shard_dir: Path) -> tuple[str, ...]:
    run_dir = tmp_path_factory.mktemp("masked_words_only") / "run"
    options = (f"data.dir={shard_dir}", f"run_dir={run_dir}", "model.next_sentence=false", "optimizer.sharded=true")
    return (*TEST_RECIPE, *options, "model.hidden_dropout_prob=0.1")


@pytest.fixture(scope="module")
def run_dir(words: tuple[str, ...]) -> Path:
    """A finished run of two ranks, whose optimizer is sharded."""
    assert "nsp" not in succeed("bert_pretrain.pretrain", *words, processes=2)
    return Path(next(word for word in words if word.startswith("run_dir=")).removeprefix("run_dir="))


def test_no_metric_mentions_the_next_sentence(run_dir: Path) -> None:
    rows = metric_rows(run_dir)
    assert not [key for row in rows for key in row if "nsp" in key]
    training, heldout = ([row for row in rows if key in row] for key in ("loss", "eval_loss"))
    assert [row["step"] for row in training] == [1, 2, 3, 4, 5, 6]
    assert all(row["loss"] == row["mlm_loss"] for row in training)
    assert all(row["eval_loss"] == row["eval_mlm_loss"] for row in heldout)
    page = succeed("bert_pretrain.report", f"run_dir={run_dir}")
    assert "held-out MLM accuracy" in page
    assert "next-sentence" not in page
    assert "next_sentence.png" not in {path.name for path in (run_dir / "plots").iterdir()}


def test_a_resumed_run_ends_with_the_same_weights(run_dir: Path, words: tuple[str, ...]) -> None:
    last = run_dir / "checkpoints/step_00000006"
    weights = load_file(last / "model/model.safetensors")
    shutil.rmtree(last)
    assert "step 3" in succeed("bert_pretrain.pretrain", *words, processes=2)
    again = load_file(last / "model/model.safetensors")
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert not [name for name in weights if "pooler" in name or "seq_relationship" in name]


def test_the_export_is_a_bert_for_masked_words(run_dir: Path, tmp_path: Path) -> None:
    succeed("bert_pretrain.hub.export", f"run_dir={run_dir}", f"out_dir={tmp_path / 'model'}")
    assert json.loads((tmp_path / "model/config.json").read_text())["architectures"] == ["BertForMaskedLM"]
    _, report = AutoModelForMaskedLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert "MLM loss (nats)" in (tmp_path / "model/README.md").read_text()


def test_single_segments_are_reported(tmp_path: Path, shard_dir: Path) -> None:
    arrays = random_arrays(np.random.default_rng(1), 20)
    arrays["segment_ids"][:] = 0
    write_manifest(tmp_path, {"shards": [write_shard(tmp_path / "train_00000.hdf5", arrays, header())]})
    said: list[str] = []
    report_single_segments(opened(shard_dir), True, said.append)
    report_single_segments(opened(tmp_path), False, said.append)
    assert not said
    report_single_segments(opened(tmp_path), True, said.append)
    assert len(said) == 1
    assert "model.next_sentence=false" in said[0]
