"""The contents of the figures."""

import itertools
import json

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from bert_pretrain.report.plots import Band, Curves, layer_figures, metric_figures
from bert_pretrain.training.metrics import LayerRows
from tests.bert_pretrain.report.made_runs import FINISHED, training

KINDS = ("attention.self.query.weight", "output.dense.bias")
NAMES = [
    "bert.embeddings.word_embeddings.weight",
    *[f"bert.encoder.layer.{i}.{kind}" for i in range(24) for kind in KINDS],
    "cls.predictions.bias",
]


def test_labels_of_the_layer_bands_of_a_deep_model_do_not_overlap() -> None:
    rng = np.random.default_rng(0)
    layers, rows = LayerRows(NAMES, 10), []
    for step in range(10, 200, 10):
        values = rng.lognormal(size=3 * len(NAMES))
        values[3] = 0.0 if step == 10 else values[3]
        values[4] = np.nan if step < 100 else values[4]
        rows.append(json.loads(json.dumps(layers.row(step, values.tolist()))))
    found = layer_figures(rows)
    assert list(found) == ["layers_trust_ratio", "layers_weight_norm", "layers_update_norm"]
    figure = found["layers_trust_ratio"]
    FigureCanvasAgg(figure).draw()
    axes = figure.axes[0]
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


def test_curves_are_those_of_the_metrics_and_the_band_is_behind_the_loss() -> None:
    band = Band([0, 20, 40], [4.5, 3.0, 2.0], [4.75, 3.5, 2.5], "ten runs of this recipe")
    found = metric_figures([Curves("a", FINISHED)], band)
    assert list(found) == ["loss", "accuracy", "next_sentence", "learning_rate", "gradient_norm", "speed"]
    (axes,) = found["loss"].axes
    batches, heldout = (line.get_xydata().tolist() for line in axes.lines)
    assert batches == [[10, 4.0], [20, 3.0], [30, 2.5], [40, 2.25]]
    assert heldout == [[0, 4.6], [20, 3.25], [40, 2.375]]
    corners = axes.collections[0].get_paths()[0].vertices.tolist()
    assert [20.0, 3.0] in corners
    assert [20.0, 3.5] in corners
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "ten runs of this recipe", "training batches", "held-out",
    ]  # fmt: skip
    assert not found["accuracy"].axes[0].collections


def test_runs_with_batches_of_different_sizes_are_drawn_over_samples() -> None:
    found = metric_figures([Curves("a", FINISHED, 16), Curves("_b$", FINISHED, 64)])
    (axes,) = found["loss"].axes
    assert axes.get_xlabel() == "samples"
    assert [max(line.get_xdata()) for line in axes.lines] == [640, 640, 2560, 2560]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "\u200b_b\\$"]


def test_a_metric_that_no_run_has_logged_has_no_figure() -> None:
    row = {name: value for name, value in training(1, 1.0).items() if "nsp" not in name}
    assert "next_sentence" not in metric_figures([Curves("a", [row])])
    assert not layer_figures([row])
