"""Which reference belongs to a run, and the sentence about it."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from bert_pretrain.config import PretrainConfig, resolved_yaml
from bert_pretrain.options.config_loading import load_config
from bert_pretrain.options.stored_options import parse_options
from bert_pretrain.report import reference as report_reference
from bert_pretrain.report.page import draw
from bert_pretrain.report.reference import HELDOUT, Reference, find_reference, references, verdict
from bert_pretrain.report.run_facts import facts, read_run
from bert_pretrain.same_run import differing_options, flat_options
from tests.bert_pretrain.report.made_runs import FINISHED, OPTIONS, PRINTS, START, end, make_run, start

WORDS = ["recipe=demo", "data.dir=shards"]


def options(*words: str) -> dict:
    return parse_options(resolved_yaml(load_config("pretrain", [*WORDS, *words], PretrainConfig)), "given")


def made_up(name: str = "demo", seeds: int = 3, **changes) -> Reference:
    curve = {"steps": [0, 100, 200], "mean": [8.0, 6.0, 5.0]}
    if seeds > 1:
        curve |= {"low": [7.9, 5.8, 4.9], "high": [8.1, 6.2, 5.1]}
    given = {"options": options("seed=1"), "data_fingerprint": "abc", "about": {}, **changes}
    return Reference(name, "command", list(range(1, seeds + 1)), curves={HELDOUT: curve}, **given)


def rows(*pairs: tuple[int, float]) -> list[dict]:
    return [{"step": step, HELDOUT: loss} for step, loss in pairs]


def test_a_reference_belongs_to_its_recipe_with_any_seed_and_cut_of_the_batch() -> None:
    known = [made_up("other", options=options("optimizer.lr=0.1")), made_up()]
    found, reason = find_reference(options("seed=9", "batch.micro_batch_size=4", "device=cpu"), "abc", set(), known)
    assert found is known[1]
    assert reason == ""


@pytest.mark.parametrize(
    ("words", "fingerprint", "reason"),
    [
        (["optimizer.lr=0.01"], "abc", "other options: optimizer.lr is 0.01 and there 0.0075"),
        (["init_from=model"], "abc", "init_from is model and there None"),
        ([], "abd", "same options, but was trained on another corpus"),
        ([], None, "shards are not known"),
        (["schedule.degree=2", "optimizer.lr=1", "batch.global_batch_size=64"], "abc", "and 1 more"),
    ],
)
def test_without_a_reference_the_reason_is_said(words, fingerprint, reason) -> None:
    found, said = find_reference(
        options(*words), fingerprint, {"novels"}, [made_up(about={"corpus": {"python": "3.11"}})]
    )
    assert found is None
    assert reason in said


def test_shards_of_the_same_corpus_in_another_version_are_compared_and_the_sentence_says_so(
    tmp_path: Path, monkeypatch
) -> None:
    corpus = {"python": "Python 3.11.7", "numpy": "2.4.6"}
    near, exact = made_up(options=OPTIONS, about={"corpus": corpus}), made_up("exact", options=OPTIONS)
    assert find_reference(OPTIONS, "abd", set(corpus), [near, exact])[0] is near
    assert find_reference(OPTIONS, "abc", set(corpus), [near, replace(exact, data_fingerprint="abc")])[1] == ""
    assert find_reference(OPTIONS, "abd", {"python"}, [near])[0] is None
    monkeypatch.setattr(report_reference, "references", lambda: [near])
    shards = tmp_path / "shards"
    shards.mkdir()
    sessions = [start(START), end(START + 60, "finished")]
    run = make_run(tmp_path / "run", FINISHED, sessions, data={**OPTIONS["data"], "dir": str(shards)})
    sources = [{"name": name, "version": "4"} for name in corpus]
    (shards / "manifest.json").write_text(json.dumps({"format_version": 1, "shards": [], "sources": sources}))
    said = dict(facts(read_run(run)))["reference curve"]
    assert said.startswith("better than the reference: held-out MLM loss 2.375")
    assert said.endswith(
        "; the reference's shards are others of this corpus: of other versions, or prepared in another way"
    )


@pytest.mark.parametrize(
    ("evaluations", "sentence"),
    [
        ([(0, 9.0), (100, 6.1)], "on track: held-out MLM loss 6.100 at step 100 is within the band of 3 seeds "
                                 "(5.800 to 6.200)"),
        ([(200, 5.35)], "not on track: held-out MLM loss 5.350 at step 200 is above the band of 3 seeds "
                        "(4.900 to 5.100) by 0.250 nats"),
        ([(200, 4.4)], "better than the reference: held-out MLM loss 4.400 at step 200 is below the band of 3 seeds "
                       "(4.900 to 5.100) by 0.500 nats"),
        ([(150, 5.5)], "on track: held-out MLM loss 5.500 at step 150 is within the band of 3 seeds (5.350 to 5.650)"),
        ([(100, 6.0), (200, math.nan)], "not on track: held-out MLM loss nan at step 200"),
        ([(0, 8.0)], "not known yet: no held-out loss after step 0"),
        ([(100, 6.1), (300, 4.0)], "on track: held-out MLM loss 6.100 at step 100 is within the band of 3 seeds "
                                   "(5.800 to 6.200)"),
    ],
)  # fmt: skip
def test_the_last_held_out_loss_decides(evaluations, sentence: str) -> None:
    assert verdict(made_up(), [{"step": 50, "mlm_loss": 1.0}, *rows(*evaluations)]) == sentence


def test_the_page_draws_the_band_and_has_the_verdict(tmp_path: Path, monkeypatch) -> None:
    known = replace(made_up(options=OPTIONS), data_fingerprint=PRINTS["train"]["fingerprint"])
    monkeypatch.setattr(report_reference, "references", lambda: [known])
    found = read_run(make_run(tmp_path / "run", FINISHED, [start(START), end(START + 60, "finished")], seed=7))
    assert dict(facts(found))["reference curve"].startswith("better than the reference: held-out MLM loss 2.375")
    band = draw(found)["loss"].axes[0].collections[0]
    assert band.get_label() == "reference demo, 3 seeds"
    assert band.get_paths()[0].vertices[:, 1].max() == 8.1


def test_one_seed_gives_no_band() -> None:
    assert made_up(seeds=1).band() is None
    said = verdict(made_up(seeds=1), rows((150, 5.6)))
    assert said == "held-out MLM loss 5.600 at step 150: +0.100 nats to the reference demo (one seed: no band)"


def test_the_band_is_the_prediction_interval_for_one_more_seed() -> None:
    """Of 1, 2, 3: mean 2, s = 1, t(2) = 4.30265, so 2 +- 4.30265 sqrt(4/3). Steps that a run lacks are left out."""
    import reference_curves

    found = reference_curves.curve([{0: 8.0, 100: 1.0, 150: 0.0}, {0: 8.0, 100: 2.0}, {0: 8.0, 100: 3.0}])
    assert found["steps"] == [0, 100]
    assert found["mean"] == [8.0, 2.0]
    width = 4.30265 * math.sqrt(4 / 3)
    assert (found["low"][1], found["high"][1]) == pytest.approx((2 - width, 2 + width), abs=1e-4)
    assert "low" not in reference_curves.curve([{0: 8.0}])


def test_the_references_that_come_with_the_program() -> None:
    known = {reference.name: reference for reference in references()}
    recipe = flat_options(options())
    assert not set(differing_options(recipe, flat_options(known["demo"].options))) - {"seed"}  # else make it again
    for reference in known.values():
        assert len(reference.data_fingerprint) == 64
        curve = reference.curves[HELDOUT]
        assert curve["steps"] == sorted(set(curve["steps"]))
        assert curve["mean"][-1] < curve["mean"][0] - 1
        if reference.band():
            ends = zip(curve["low"], curve["mean"], curve["high"], strict=True)
            assert all(low <= mean <= high for low, mean, high in ends)
        assert "/" not in json.dumps([reference.options, reference.about]), "paths of the machine that made it"
