"""A study's verdicts and its table, on worked examples."""

import math

import pytest

from bert_pretrain.errors import ConfigError
from bert_pretrain.study.curve import Curve
from bert_pretrain.study.verdict import Claim, in_nats, judge, last_losses, table

SEEDS = range(1, 6)
ON = {seed: 2.0 + 0.1 * seed for seed in SEEDS}


def sentence(off: dict[int, float], expects: str) -> str:
    source = {
        "worse": "article_pre_normalization",
        "same": "article_decay_degree",
        "open": "article_samples",
        "better": "nado_adam",
    }[expects]
    (verdict,) = judge([Claim("off", "on", source, expects)], [{"on": ON, "off": off}])
    return verdict.sentence(in_nats, "nats")


def shifted(by: float, noise: float = 0.01) -> dict[int, float]:
    return {seed: loss + by + noise * (-1) ** seed for seed, loss in ON.items()}


@pytest.mark.parametrize(
    ("by", "expects", "words"),
    [
        (0.5, "worse", ["worse, +0.498 nats (95 %: +0.484 to +0.512; p 5.6e-08). NVIDIA's article: worse."]),
        (-0.5, "worse", ["better, -0.502 nats", "). NVIDIA's article: worse."]),
        (0.0, "worse", ["**: -0.002 nats", "): no difference shows; one of +0.0", " would. NVIDIA's article: worse."]),
        (0.0, "same", [": no difference shows; one of +0.0", " would. NVIDIA's article: no difference."]),
        (0.5, "same", ["worse, +0.498 nats", "). NVIDIA's article: no difference."]),
        (0.5, "open", ["worse, +0.498 nats", "). NVIDIA's article: left open."]),
        (-0.5, "better", ["better, -0.502 nats", "Nado et al. (arXiv 2102.06356): no worse."]),
    ],
)
def test_the_sentence_of_a_verdict(by: float, expects: str, words: list[str]) -> None:
    for part in words:
        assert part in sentence(shifted(by), expects)


def test_the_p_values_of_all_pairs_are_corrected_together() -> None:
    """A difference that counts alone, p 0.02, does not count beside nine other pairs. Two claims on a pair are one."""
    off = shifted(0.03, 0.015)
    others = {f"other {number}": ON for number in range(9)}
    claims = [Claim("off", "on", "expected_worse", "worse")]
    claims += [Claim(other, "on", "expected_same", "same") for other in others]
    alone, together = (judge(some, [{"on": ON, "off": off, **others}] * len(some))[0] for some in (claims[:1], claims))
    assert alone.found == "worse"
    assert alone.p < 0.05
    assert together.found == "same"
    assert together.p == pytest.approx(10 * alone.p)
    assert together.difference.smallest > alone.difference.smallest
    twice = judge([claims[0], Claim("on", "off", "nado_adam", "same")], [{"on": ON, "off": off}] * 2)
    assert [verdict.found for verdict in twice] == ["worse", "better"]
    assert {verdict.p for verdict in twice} == {alone.p}


@pytest.mark.parametrize(("failed", "found"), [(1, "same"), (4, "worse")])
def test_an_arm_is_worse_if_so_many_more_runs_failed_that_chance_is_unlikely(failed: int, found: str) -> None:
    """Fisher's exact test of 1 and of 4 failed runs of five against none: p 1 and 2 * 5 / 210 = 0.048."""
    claim, back = Claim("off", "on", "expected_worse", "worse"), Claim("on", "off", "nado_adam", "better")
    off = ON | dict.fromkeys(range(1, failed + 1), math.inf)
    first, second = judge([claim, back], [{"on": ON, "off": off}] * 2)
    assert (first.found, second.found) == (found, {"worse": "better", "same": "same"}[found])
    assert first.p == pytest.approx({1: 1.0, 4: 10 / 210}[failed])
    words = f"{failed} of 5 runs failed, against 0 of 5 (Fisher's exact p {first.p:.2g})"
    assert words in first.sentence(in_nats, "nats")
    assert f"0 of 5 runs failed, against {failed} of 5" in second.sentence(in_nats, "nats")
    both = judge([claim], [{"on": {**ON, 1: math.inf}, "off": {**ON, 3: math.inf}}])
    assert both[0].found == "same"
    assert "too few runs: no difference shows. " in judge([claim], [{"on": {1: 2.0}, "off": {1: 3.0}}])[0].sentence(
        str, ""
    )


def test_table() -> None:
    def curve(arm: str, final: float, seed: int, diverged: bool = False) -> Curve:
        return Curve(arm, 0.1, seed, [10, 20], [5.0, final], diverged, command=f"run {seed}", commit="c")

    runs = {"on": [curve("on", 2.0, 1), curve("on", 2.5, 2)], "off": [curve("off", 3.0, 1, True), curve("off", 3.1, 2)]}
    first, second = table(runs, {"on": {0.1: (2.0, 2.0), 0.3: (4.0, 4.0)}})
    assert first == {
        "arm": "on", "peak learning rate": 0.1, "tried": "0.1, 0.3 (best at the edge)", "n": 2, "mean loss": 2.25,
        "lowest": 2.0, "highest": 2.5, "diverged": 0, "norm outliers": "0 of 0", "command": "run 1", "commit": "c",
    }  # fmt: skip
    assert (second["mean loss"], second["diverged"], second["tried"]) == (math.inf, 1, "-")
    assert last_losses(runs)["off"] == {1: math.inf, 2: 3.1}


@pytest.mark.parametrize(
    ("source", "expects", "message"),
    [
        ("article", "worse", "claim on off: source is 'article'; allowed: article_pre_normalization"),
        ("article_decay_degree", "worse", "claim on off: expects is 'worse'; allowed: same of article_decay_degree"),
    ],
)
def test_a_claim_that_its_source_does_not_make_is_refused(source: str, expects: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Claim("off", "on", source, expects)
