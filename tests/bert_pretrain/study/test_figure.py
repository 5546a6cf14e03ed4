"""The contents of a study's figure."""

from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from bert_pretrain.study.curve import Curve
from bert_pretrain.study.figure import draw_study


@pytest.fixture
def kept(monkeypatch) -> list:
    """The figures at the time they are saved."""
    figures: list = []
    monkeypatch.setattr(plt, "close", figures.append)
    return figures


def test_bands_over_the_seeds_and_the_number_of_diverged_runs(tmp_path: Path, kept: list) -> None:
    def curve(arm: str, seed: int, losses: list[float], diverged: bool = False) -> Curve:
        return Curve(arm, 0.1, seed, [10, 20, 30][: len(losses)], losses, diverged)

    curves = {
        "on": [curve("on", 1, [4.0, 3.0, 2.0]), curve("on", 2, [4.0, 3.5, 2.5])],
        "off": [curve("off", 1, [4.0, 3.0, 2.8]), curve("off", 2, [4.0, 9.0], diverged=True)],
    }
    draw_study(tmp_path, "A question", curves)
    left, right = kept[-1].axes
    assert [line.get_ydata().tolist() for line in left.lines] == [[4.0, 3.25, 2.25], [4.0, 6.0]]
    band = left.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (2.0, 4.0)
    assert [text.get_text() for text in right.texts] == ["1 of 2 diverged"]
    assert right.lines[0].get_xdata().tolist() == [2.0, 2.5]
