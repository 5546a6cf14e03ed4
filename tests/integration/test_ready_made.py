"""Runs on rows of token ids and on streamed text: killed and resumed, and on one process or two."""

import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.bert_pretrain.data.test_ready_made import make_tokenizer, save_ids, save_text, texts
from tests.conftest import TEST_RECIPE, metric_rows, succeed
from tests.forked import Forked

STEPS = 10
OPTIONS = (
    *TEST_RECIPE,
    "data.masking=dynamic",
    "data.masked_lm_prob=0.15",
    "data.shuffle_buffer=40",
    "data.streams=3",
    "data.heldout_fraction=0.1",
    "model.next_sentence=false",
    "model.hidden_dropout_prob=0",  # which depends on the cut
    "precision.compute=fp32",
    f"schedule.total_steps={STEPS}",
    "checkpoint.every_steps=2",
    "training.evaluate_every_steps=5",
)


@pytest.mark.parametrize("kind", ["pretokenised", "streamed"])
def test_killed_and_resumed_it_is_the_same_run_on_one_process_or_two(tmp_path: Path, kind: str) -> None:
    tokenizer, data = make_tokenizer(tmp_path / "tokenizer"), tmp_path / "rows"
    if kind == "streamed":
        save_text(data, texts())
    else:
        save_ids(data, tokenizer, "bare", texts())
    words = [*OPTIONS, f"data={kind}", f"data.dir={data}", f"data.tokenizer={tokenizer}"]

    def train(run_dir: Path, processes: int) -> str:
        return succeed("bert_pretrain.pretrain", *words, f"run_dir={run_dir}", processes=processes)

    whole, killed, alone = tmp_path / "whole", tmp_path / "killed", tmp_path / "alone"
    assert "held out: every 10th row" in train(whole, 2)
    run = Forked("tests.integration.killed_rank", "1:6:1", *words, f"run_dir={killed}", ranks=2)
    run.wait()
    assert run.statuses[1] == -signal.SIGKILL
    shutil.copytree(killed, alone)
    assert "resuming from" in train(killed, 2)
    weights = [load_file(path / f"checkpoints/step_{STEPS:08d}/model/model.safetensors") for path in (killed, whole)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert metric_rows(killed) == metric_rows(whole)
    assert "resuming from" in train(alone, 1)
    for found, expected in zip(metric_rows(alone), metric_rows(whole), strict=True):
        assert found.get("samples_seen") == expected.get("samples_seen")
        for loss in ("mlm_loss", "eval_mlm_loss"):
            assert found.get(loss, 0) == pytest.approx(expected.get(loss, 0), abs=1e-5)
