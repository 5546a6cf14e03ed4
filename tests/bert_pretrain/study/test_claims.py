"""Every claim of every study is one of the sources', in the direction that the source has it."""

import pytest

from bert_pretrain.config_files import CONFIG_DIR
from bert_pretrain.config_loading import load_config
from bert_pretrain.study.claims import ARTICLE, CLAIMS
from bert_pretrain.study.options import StudyConfig

NAMES = sorted(path.stem for path in (CONFIG_DIR / "study").glob("*.yaml"))
# What the article says about two arms, read from it once more: not what the studies would like it to say.
OF_THE_ARTICLE = {
    "article_pre_normalization": "worse",  # without it, pretraining does not converge as expected
    "article_bias_correction": "worse",  # without it, pretraining diverges
    "article_weight_norm": "same",  # not scaled, and still state of the art
    "article_decay_degree": "same",  # no observable difference
    "article_samples": "worse",  # LAMB took twice the samples of AdamW
    "article_large_batches": "same",  # no compromise in accuracy
}


def test_the_article_s_claims_are_these() -> None:
    found = {name: claim.results for name, claim in CLAIMS.items() if claim.source == ARTICLE}
    assert found == {name: (result,) for name, result in OF_THE_ARTICLE.items()}
    assert all(claim.text and claim.place for claim in CLAIMS.values())


@pytest.mark.parametrize("name", NAMES)
def test_every_study_claims_what_its_source_says(name: str) -> None:
    options = [f"study={name}", f"name={name}", "scale=small", "out_dir=none"]
    claims = load_config("study", options, StudyConfig).claims
    assert claims
    for claim in claims:
        assert claim.expects in CLAIMS[claim.source].results
        if claim.source in OF_THE_ARTICLE:
            assert claim.expects == OF_THE_ARTICLE[claim.source]
            negative = {"article_pre_normalization": ("without", "LAMB"), "article_bias_correction": ("without",)}
            assert claim.arm.startswith(negative.get(claim.source, ("",)))


def test_the_decay_s_degree_is_claimed_to_make_no_difference() -> None:
    config = load_config("study", ["study=decay_degree", "name=x", "scale=small", "out_dir=none"], StudyConfig)
    assert {(claim.source, claim.expects) for claim in config.claims} == {("article_decay_degree", "same")}
