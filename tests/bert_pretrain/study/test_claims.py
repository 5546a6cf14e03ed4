"""Every claim of every study is one of the sources', in the direction that the source has it."""

import json

import pytest

from bert_pretrain.options.config_files import CONFIG_DIR
from bert_pretrain.options.config_loading import load_config
from bert_pretrain.study.claims import ARTICLE, CLAIMS
from bert_pretrain.study.options import StudyConfig
from bert_pretrain.study.statistics import Difference
from bert_pretrain.study.verdict import Verdict
from tests.conftest import ROOT

NAMES = sorted(path.stem for path in (CONFIG_DIR / "study").glob("*.yaml"))
# What the article says about two arms, read from it once more: not what the studies would like it to say.
OF_THE_ARTICLE = {
    "article_pre_normalization": "worse",  # without it, pretraining does not converge as expected
    "article_bias_correction": "worse",  # without it, pretraining diverges
    "article_weight_norm": "no difference",  # not scaled, and still state of the art
    "article_decay_degree": "no difference",  # no observable difference
    "article_samples": "left open",  # LAMB took twice the samples of AdamW; whether it needs them was not examined
    "article_large_batches": "no worse",  # no compromise in accuracy
}


def test_the_article_s_claims_are_these() -> None:
    found = {name: claim.on_two_arms for name, claim in CLAIMS.items() if claim.source == ARTICLE}
    assert found == {name: f"{ARTICLE}: {result}" for name, result in OF_THE_ARTICLE.items()}
    assert all(claim.text and claim.place for claim in CLAIMS.values())


@pytest.mark.parametrize("name", NAMES)
def test_every_study_claims_what_its_source_says(name: str) -> None:
    options = [f"study={name}", f"name={name}", "scale=small", "out_dir=none"]
    claims = load_config("study", options, StudyConfig).claims
    assert claims
    for claim in claims:
        assert claim.expects in CLAIMS[claim.source].results
        if claim.source in OF_THE_ARTICLE:
            negative = {"article_pre_normalization": ("without", "LAMB"), "article_bias_correction": ("without",)}
            assert claim.arm.startswith(negative.get(claim.source, ("",)))


def test_the_decay_s_degree_is_claimed_to_make_no_difference() -> None:
    config = load_config("study", ["study=decay_degree", "name=x", "scale=small", "out_dir=none"], StudyConfig)
    assert {(claim.source, claim.expects) for claim in config.claims} == {("article_decay_degree", "same")}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("found", "mean"), [("worse", 1.0), ("better", -1.0), ("same", 0.001)])
def test_a_verdict_ends_with_what_the_article_says_whatever_was_found(name: str, found: str, mean: float) -> None:
    """Of every claim of every study, for each outcome."""
    options = [f"study={name}", f"name={name}", "scale=small", "out_dir=none"]
    for claim in load_config("study", options, StudyConfig).claims:
        said = Verdict(claim, found, Difference(mean, mean - 0.1, mean + 0.1, 0.01, 5, 0.2), 0.01).sentence(str, "nats")
        assert (": no difference shows; one of 0.2 would. " in said) == (found == "same")
        assert (f"**: {found}, {mean} nats" in said) == (found != "same")
        if claim.source in OF_THE_ARTICLE:
            assert said.endswith(f". {ARTICLE}: {OF_THE_ARTICLE[claim.source]}.")
        else:
            assert ARTICLE not in said


def test_the_results_have_only_verdicts_on_claims_as_they_are_today() -> None:
    for path in (ROOT / "scripts/results").glob("*_study_*.json"):
        result = json.loads(path.read_text())
        texts, ends = zip(*((claim.text, f". {claim.on_two_arms}.") for claim in CLAIMS.values()), strict=True)
        assert all(any(text in source for text in texts) for source in result.get("sources", [])), path.name
        compared = [said for said in result.get("verdicts", []) if "** against **" in said]
        assert "sources" not in result or all(said.endswith(ends) for said in compared), path.name
