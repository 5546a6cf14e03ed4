"""The contents of the layer plots."""

import itertools
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from bert_pretrain.report import plots
from bert_pretrain.training.metrics import LayerRows

KINDS = ("attention.self.query.weight", "output.dense.bias")
NAMES = [
    "bert.embeddings.word_embeddings.weight",
    *[f"bert.encoder.layer.{i}.{kind}" for i in range(24) for kind in KINDS],
    "cls.predictions.bias",
]


@pytest.fixture
def kept(monkeypatch) -> list:
    """The figures at the time they are saved."""
    figures: list = []
    monkeypatch.setattr(plt, "close", figures.append)
    return figures


def test_labels_of_the_layer_bands_of_a_deep_model_do_not_overlap(tmp_path: Path, kept: list) -> None:
    rng = np.random.default_rng(0)
    rows = LayerRows(NAMES, 10)
    with open(tmp_path / "metrics.jsonl", "w") as file:
        for step in range(10, 200, 10):
            values = rng.lognormal(size=3 * len(NAMES))
            values[3] = 0.0 if step == 10 else values[3]
            values[4] = np.nan if step < 100 else values[4]
            file.write(json.dumps(rows.row(step, values.tolist())) + "\n")
    folder = plots.draw_run(tmp_path)
    for kind in ("trust_ratio", "weight_norm", "update_norm"):
        assert (folder / f"layers_{kind}.png").stat().st_size > 10_000
    axes = kept[-3].axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [
        "embeddings.word_embeddings.weight", "attention.self.query.weight  x24", "output.dense.bias  x24",
        "cls.predictions.bias",
    ]  # fmt: skip
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(above.y0 >= below.y1 for above, below in itertools.pairwise(boxes))
    mesh = axes.collections[0].get_array()
    assert mesh.shape == (len(NAMES), 19)
    assert mesh.mask.sum() == 1 + 9  # a norm of 0, and a layer that was not updated at first


def test_runs_without_layer_rows_have_no_layer_plots(tmp_path: Path) -> None:
    row = {"step": 1, "mlm_loss": 1.0, "mlm_accuracy": 0.1, "nsp_loss": 1.0, "lr": 1.0, "grad_norm": 1.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row | {"tokens_per_second": 1.0}) + "\n")
    assert not list(plots.draw_run(tmp_path).glob("layers_*"))
