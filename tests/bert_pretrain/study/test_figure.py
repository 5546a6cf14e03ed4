"""The contents of a study's figure."""

import itertools
import math
from pathlib import Path

import pytest

from bert_pretrain.study.critical_batch import CriticalBatch
from bert_pretrain.study.curve import Curve
from bert_pretrain.study.figure import draw_study, style
from bert_pretrain.study.options import TargetConfig
from bert_pretrain.study.scaling_figure import draw_scaling
from bert_pretrain.study.statistics import Difference


def test_bands_over_the_seeds_and_the_number_of_diverged_runs(tmp_path: Path) -> None:
    def curve(arm: str, seed: int, losses: list[float], diverged: bool = False) -> Curve:
        return Curve(arm, 0.1, seed, [10, 20, 30][: len(losses)], losses, diverged)

    curves = {
        "on": [curve("on", 1, [4.0, 3.0, 2.0]), curve("on", 2, [4.0, 3.5, 2.5])],
        "off": [curve("off", 1, [4.0, 3.0, 2.8]), curve("off", 2, [4.0, 9.0], diverged=True)],
    }
    left, right = draw_study(tmp_path, "A question", curves).axes
    assert [line.get_ydata().tolist() for line in left.lines[:2]] == [[4.0, 3.25, 2.25], [4.0, 6.0]]
    assert [(text.get_text(), text.get_position()[1]) for text in left.texts] == [("off", 6.0), ("on", 2.25)]
    band = left.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (2.0, 4.0)
    assert [text.get_text() for text in right.texts] == ["1 of 2 diverged"]
    assert right.lines[0].get_xdata().tolist() == [2.0, 2.5]
    mean, bar = right.containers[0].lines[0], right.containers[0].lines[2][0].get_segments()[0]
    assert mean.get_xdata().tolist() == [2.25]
    assert bar[:, 0].tolist() == pytest.approx([2.25 - 12.7062 * 0.25, 2.25 + 12.7062 * 0.25], rel=1e-5)


def test_arms_can_be_told_apart_in_grey() -> None:
    looks = [style(row) for row in range(9)]
    assert len({look["marker"] for look in looks}) == 9
    assert all(a["linestyle"] != b["linestyle"] for a, b in itertools.pairwise(looks))


def test_labels_at_the_ends_of_lines_do_not_overlap(tmp_path: Path) -> None:
    curves = {f"arm {i}": [Curve(f"arm {i}", 0.1, 1, [10, 20], [4.0, 1.0 + i / 1000], False)] for i in range(4)}
    left, _ = draw_study(tmp_path, "A question", curves).axes
    texts = left.texts
    heights = [text.get_position()[1] for text in texts]
    assert [text.get_text() for text in texts] == ["arm 3", "arm 2", "arm 1", "arm 0"]
    low, high = left.get_ylim()
    assert all(above - below >= 0.049 * (high - low) for above, below in itertools.pairwise(heights))
    assert heights[-1] > low


def test_the_lines_of_perfect_scaling_and_the_samples_over_the_baseline_s(tmp_path: Path) -> None:
    """Steps of 100 (1 + 512 / B) and twice as many; the second arm never gets there at 4,096."""
    target = TargetConfig(4.0, [64, 512, 4096], 64, "AdamW", 2.0)
    steps = {("AdamW", batch): {1: math.log(100 * (1 + 512 / batch))} for batch in target.batch_sizes}
    steps |= {("LAMB", batch): {1: logs[1] + math.log(2)} for (_, batch), logs in steps.items()}
    steps["LAMB", 512].pop(1)
    steps["LAMB", 512] |= {2: math.log(300)}
    steps["LAMB", 4096] = {}
    twice = Difference(math.log(2), math.log(1.5), math.log(3), 0.01, 3, 0.1)
    fits = {"AdamW": CriticalBatch(100.0, 512.0, 256.0, 1024.0), "LAMB": None}
    ratios = {("LAMB", batch): (twice, 0.02) for batch in (64, 512)}
    failed = {("LAMB", 512), ("LAMB", 4096)}
    left, right = draw_scaling(tmp_path, "A question", target, steps, fits, ratios, failed).axes
    hollow = [line for line in left.lines if line.get_markerfacecolor() == "white" and len(line.get_xdata())]
    assert [(list(line.get_xdata()), line.get_ydata()[0]) for line in hollow] == [([512], pytest.approx(300))]
    dotted = next(line for line in left.lines if line.get_linestyle() == ":")
    assert (dotted.get_xdata() * dotted.get_ydata()).tolist() == pytest.approx([100 * 512] * 100)
    curve = next(line for line in left.lines if len(line.get_xdata()) == 100 and line.get_linestyle() == "-")
    assert curve.get_ydata()[[0, -1]].tolist() == pytest.approx([900, 112.5])
    interval = next(line for line in left.lines if list(line.get_xdata()) == [256.0, 1024.0])
    assert interval.get_ydata()[0] == interval.get_ydata()[1]
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["AdamW: critical batch 512", "LAMB"]
    assert right.containers[0].lines[0].get_ydata().tolist() == pytest.approx([2.0, 2.0])
    bars = right.containers[0].lines[2][0].get_segments()
    assert bars[0][:, 1].tolist() == pytest.approx([1.5, 3.0])
    for name in ("study.png", "study.svg"):
        assert (tmp_path / name).stat().st_size > 10_000
