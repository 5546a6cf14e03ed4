"""The arithmetic of a study's verdict, on worked examples."""

import math

import pytest

from bert_pretrain.errors import ConfigError
from bert_pretrain.study.verdict import Claim, Curve, best_rate, judge, page, table


def curve(arm: str, final: float, seed: int = 1, rate: float = 0.1, diverged: bool = False) -> Curve:
    return Curve(arm, rate, seed, [10, 20], [5.0, final], diverged)


def arms(**finals: list[float]) -> dict[str, list[Curve]]:
    return {arm: [curve(arm, value, seed) for seed, value in enumerate(values)] for arm, values in finals.items()}


@pytest.mark.parametrize(
    ("off", "difference", "spread", "found"),
    [
        ([2.6, 2.8, 2.7], 0.6, 0.3, "worse"),  # means 2.7 and 2.1; spreads 0.2 and 0.3
        ([2.5, 2.3, 2.4], 0.3, 0.3, "same"),  # equal to the spread
        ([2.0, 2.9, 2.6], 0.4, 0.9, "same"),
        ([1.5, 1.6, 1.4], -0.6, 0.3, "better"),
    ],
)
def test_a_difference_is_an_effect_only_beyond_the_larger_spread(off, difference, spread, found) -> None:
    verdict = judge(Claim("off", "on", "worse"), arms(on=[2.0, 2.0, 2.3], off=off))
    assert verdict.difference == pytest.approx(difference)
    assert verdict.spread == pytest.approx(spread)
    assert verdict.found == found


@pytest.mark.parametrize(
    ("article", "final", "words"),
    [
        ("worse", 3.0, "is worse (+1.000 nats, spread 0.100); as in the article"),
        ("worse", 2.0, "shows no difference (+0.000 nats, spread 0.100); the article's effect (worse) is not"),
        ("worse", 1.0, "is better (-1.000 nats, spread 0.100); the article finds it worse"),
        ("same", 3.0, "is worse (+1.000 nats, spread 0.100); the article finds it the same"),
        ("same", 2.0, "shows no difference (+0.000 nats, spread 0.100); as in the article"),
    ],
)
def test_the_sentence_of_a_verdict(article: str, final: float, words: str) -> None:
    found = judge(Claim("off", "on", article), arms(on=[1.95, 2.05], off=[final - 0.05, final + 0.05]))
    assert words in found.sentence


def test_the_arm_with_more_diverged_runs_is_worse() -> None:
    runs = arms(on=[2.0, 2.1], off=[2.0, 2.1])
    runs["off"][1] = curve("off", 2.1, diverged=True)
    for off_index in (1, 0):  # one of two, then both
        verdict = judge(Claim("off", "on", "worse"), runs)
        assert verdict.found == "worse"
        assert "runs diverged" in verdict.sentence
        assert judge(Claim("on", "off", "better"), runs).found == "better"
        runs["off"][off_index - 1] = curve("off", math.nan)
    runs["on"] = runs["off"]
    assert judge(Claim("off", "on", "worse"), runs).found == "same"


def test_table_and_best_rate() -> None:
    runs = arms(on=[2.0, 2.5], off=[3.0, 3.1])
    runs["off"][0] = curve("off", 3.0, diverged=True)
    first, second = table(runs, {"on": [0.1, 0.3]})
    assert first == {
        "arm": "on", "peak learning rate": 0.1, "tried": "0.1, 0.3 (best at the edge)", "seeds": 2, "mean loss": 2.25,
        "lowest": 2.0, "highest": 2.5, "diverged": 0,
    }  # fmt: skip
    assert (second["mean loss"], second["diverged"], second["tried"]) == (math.inf, 1, "-")
    tried = [curve("on", 2.5, rate=0.1), curve("on", 2.4, rate=0.3), curve("on", 1.0, rate=1.0, diverged=True)]
    assert best_rate(tried) == 0.3


def test_the_page_has_article_verdict_and_rule() -> None:
    runs = arms(on=[2.0], off=[3.0])
    text = page("Is it so?", "yes.", table(runs, {}), [judge(Claim("off", "on", "worse"), runs)], "A toy.")
    for part in ("# Is it so?", "The article: yes.", "**off** against **on**: is worse", "| off | 0.1 | - | 1 | 3.0 |",
                 "exceeds the larger of the two spreads", "A toy."):  # fmt: skip
        assert part in text


def test_an_unknown_result_of_a_claim_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"claim on off: article is 'bad'; allowed: worse \| better \| same"):
        Claim("off", "on", "bad")
