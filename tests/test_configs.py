"""Every recipe composes, with its published numbers."""

import dataclasses
import re
from pathlib import Path

import pytest

from bert_pretrain.config import PretrainConfig, resolved_yaml
from bert_pretrain.errors import ConfigError
from bert_pretrain.model.flops import training_flops
from bert_pretrain.optim.schedule import learning_rate
from bert_pretrain.options.config_files import CONFIG_DIR
from bert_pretrain.options.config_loading import load_config
from bert_pretrain.plan.run import describe_plan
from bert_pretrain.same_run import check_same_run, moments_fault
from tests.conftest import ROOT

RECIPES = sorted(path.stem for path in (CONFIG_DIR / "recipe").glob("*.yaml"))
PRESETS = sorted(path.stem for path in (CONFIG_DIR / "optimizer").glob("*.yaml"))


def composed(*overrides: str) -> PretrainConfig:
    return load_config("pretrain", list(overrides), PretrainConfig)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_composes_and_starts_with_its_arithmetic(recipe: str) -> None:
    config = composed(f"recipe={recipe}")
    text = (CONFIG_DIR / "recipe" / f"{recipe}.yaml").read_text()
    assert text.startswith("# @package _global_\n# ")
    assert config.run_dir == f"runs/{recipe}"


def test_the_demo_has_the_optimizer_of_small_batches_and_gives_others_its_rate() -> None:
    demo = composed("recipe=demo").optimizer
    assert demo == composed("recipe=demo", "optimizer=nvlamb_small_batch").optimizer
    assert composed("recipe=demo", "optimizer=muon").optimizer.lr == demo.lr


@pytest.mark.parametrize("preset", PRESETS)
def test_every_optimizer_composes_with_phase_1(preset: str) -> None:
    config = composed("recipe=bert_large_64k_phase1", f"optimizer={preset}", "batch.global_batch_size=4096")
    assert config.optimizer.lr == 6e-3  # the recipe's
    assert config.batch.global_batch_size == 4096  # the command line's


def test_the_articles_numbers() -> None:
    """Batch x steps at peak learning rate: 65,536 x 7,038 at 6e-3, 32,768 x 1,563 at 4e-3, warm-up 28.43 and 12.8 %."""
    for phase, batch, steps, lr, warmup, length in (
        (1, 65_536, 7_038, 6e-3, 2001, 128),
        (2, 32_768, 1_563, 4e-3, 200, 512),
    ):
        config = composed(f"recipe=bert_large_64k_phase{phase}")
        assert (config.batch.global_batch_size, config.schedule.total_steps) == (batch, steps)
        assert (config.optimizer.lr, config.schedule.warmup, config.data.sequence_length) == (lr, warmup, length)
        assert (config.schedule.degree, config.schedule.decay_from) == (0.5, "warmup_end")
        assert (config.optimizer.pre_normalization, config.optimizer.trust_ratio) == ("unit", "all")
        published = composed(f"recipe=bert_large_64k_phase{phase}_published")
        assert published.schedule.decay_from == "start"
        assert (published.optimizer.pre_normalization, published.optimizer.trust_ratio) == ("clip", "decayed")
        assert learning_rate(0, lr, published.schedule) == pytest.approx(
            lr / (published.schedule.warmup_proportion * steps)
        )
    assert composed("recipe=bert_large_64k_phase2").init_moments == "keep"
    assert composed("recipe=bert_large_64k_phase2_published").init_moments == "restart"


def test_the_domain_recipe_takes_a_base_model_about_two_hours() -> None:
    config = composed("recipe=domain")
    tokens = config.schedule.total_steps * config.batch.global_batch_size * config.data.sequence_length
    assert tokens == pytest.approx(1.18e9, rel=0.005)
    base = dataclasses.replace(composed("recipe=bert_base_1gpu").model, next_sentence=False)
    flops = training_flops(base, tokens / 512, tokens, tokens * 512, 0.15 * tokens)
    assert flops == pytest.approx(6.9e17, rel=0.01)
    assert flops / 100e12 / 3600 == pytest.approx(1.9, rel=0.02)
    assert (config.model.hidden_size, config.model.next_sentence, config.data.masking) == (None, False, "dynamic")


def test_the_recipe_in_the_documents_composes(tmp_path: Path) -> None:
    (recipe,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/pretrain.md").read_text(), re.S)
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text(recipe)
    config = load_config("pretrain", ["recipe=mine"], PretrainConfig, tmp_path)
    assert (config.run_dir, config.batch.global_batch_size) == ("runs/mine", 1024)


def test_the_default_run_dir_is_named_after_the_recipe(tmp_path: Path) -> None:
    text = (CONFIG_DIR / "recipe" / "demo.yaml").read_text().replace("run_dir: runs/demo\n", "")
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text(text)
    assert load_config("pretrain", ["recipe=mine"], PretrainConfig, tmp_path).run_dir == "runs/mine"


def test_moments_of_another_optimizer_do_not_fit(tmp_path: Path) -> None:
    before = composed("recipe=demo")
    (tmp_path / "config.yaml").write_text(resolved_yaml(before))
    assert moments_fault(before, tmp_path) is None
    for optimizer, option in (("adamw", "algorithm"), ("lamb", "pre_normalization")):
        fault = moments_fault(composed("recipe=demo", f"optimizer={optimizer}"), tmp_path)
        assert fault is not None
        assert f"was trained with optimizer.{option}=" in fault


def test_model_shapes_are_those_of_bert() -> None:
    shapes = {"bert_base_1gpu": (768, 12, 12, 3072, 30_522), "bert_large_64k_phase1": (1024, 24, 16, 4096, 30_522)}
    for recipe, shape in shapes.items():
        model = composed(f"recipe={recipe}").model
        heads, width = model.num_attention_heads, model.intermediate_size
        assert (model.hidden_size, model.num_hidden_layers, heads, width, model.vocab_size) == shape


def test_composing_twice_gives_the_same_options() -> None:
    before = dataclasses.asdict(composed("recipe=demo"))
    composed("recipe=bert_large_64k_phase2", "seed=3")
    assert dataclasses.asdict(composed("recipe=demo")) == before


def test_a_resumed_run_may_change_its_micro_batch_but_not_its_arithmetic() -> None:
    old = "seed: 1\nbatch: {micro_batch_size: 8, global_batch_size: 32}\nlogging: {every_steps: 1}\n"
    check_same_run(old.replace("micro_batch_size: 8", "micro_batch_size: 2"), old, "r")
    check_same_run(old.replace("every_steps: 1", "every_steps: 5"), old, "r")
    for change in (("seed: 1", "seed: 2"), ("global_batch_size: 32", "global_batch_size: 64")):
        with pytest.raises(ConfigError, match=rf"run_dir r belongs to another run: .*{change[0].split(': ')[0]}"):
            check_same_run(old.replace(*change), old, "r")


def test_a_run_of_an_earlier_version_did_what_new_options_say_by_default() -> None:
    old = "seed: 1\nmodel: {hidden_size: 8}\n"
    check_same_run(old.replace("}", ", next_sentence: true}"), old, "r")
    with pytest.raises(ConfigError, match=r"model\.next_sentence was True and is False"):
        check_same_run(old.replace("}", ", next_sentence: false}"), old, "r")


@pytest.mark.parametrize(
    ("options", "floats"),
    [
        ((), 4.0),
        (("optimizer=sgd",), 3.0),
        (("optimizer.sharded=true",), 2.25),
        (("optimizer=lars", "optimizer.sharded=true"), 2.125),
    ],
)
def test_the_plan_counts_weights_gradients_and_moments(options: tuple, floats: float) -> None:
    """BERT-large, 336,226,108 parameters of 4 bytes, on 8 ranks."""
    text = describe_plan(composed("recipe=bert_large_64k_phase1", *options), 8, "cuda", "bf16", None)
    assert f"{4 * floats * 336_226_108 / 2**30:.2f} GiB for weights, gradients and moments" in text
