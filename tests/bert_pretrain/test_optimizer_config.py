"""Presets, the schema, decay groups and the builder."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from transformers import BertConfig, BertForPreTraining

from bert_pretrain.optim import AdamW, NVLamb, OptimizerConfig, build_optimizer, decay_groups
from bert_pretrain.optim.schedule import ScheduleConfig

PRESETS = Path(__file__).resolve().parents[2] / "configs" / "optimizer"


def load(name, **overrides):
    """Compose a preset as an entry point does: file over schema, overrides over both, then the dataclass."""
    config = OmegaConf.merge(OmegaConf.structured(OptimizerConfig), OmegaConf.load(PRESETS / f"{name}.yaml"), overrides)
    return OmegaConf.to_object(config)


@pytest.fixture(scope="module")
def model():
    config = BertConfig(
        vocab_size=100, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    return BertForPreTraining(config)


EXPECTED = {"nvlamb": ("unit", "all"), "nvidia_code": ("clip", "decayed"), "lamb": ("none", "all"), "adamw": None}


@pytest.mark.parametrize("name", EXPECTED)
def test_preset_builds_and_steps(name, model):
    config = load(name, lr=1e-3)
    optimizer = build_optimizer(model, config)
    if EXPECTED[name] is None:
        assert isinstance(optimizer, AdamW)
        assert optimizer.max_grad_norm == 1.0
    else:
        assert isinstance(optimizer, NVLamb)
        assert (optimizer.rules.pre_normalization, optimizer.rules.adaptation.layers) == EXPECTED[name]
        assert optimizer.rules.bias_correction
    for group in optimizer.param_groups:
        assert (group["lr"], tuple(group["betas"]), group["eps"]) == (1e-3, (0.9, 0.999), 1e-6)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert optimizer.skipped == 0
    assert optimizer.grad_norm > 0


def test_every_preset_is_tested_and_leaves_the_rate_to_the_recipe():
    assert {path.stem for path in PRESETS.glob("*.yaml")} == set(EXPECTED)
    for name in EXPECTED:
        with pytest.raises(MissingMandatoryValue, match="lr"):
            load(name)


def test_schema_rejects_unknown_options_and_wrong_types():
    for wrong in ({"learning_rate": 1.0}, {"betas": 0.9}, {"bias_correction": "perhaps"}):
        with pytest.raises(OmegaConfBaseException):
            load("nvlamb", lr=1e-3, **wrong)
    assert OmegaConf.structured(ScheduleConfig)  # no defaults: every value comes from a recipe


@pytest.mark.parametrize(
    ("preset", "overrides", "message"),
    [
        ("nvlamb", {"algorithm": "adamax"}, "optimizer.algorithm is 'adamax'; allowed: nvlamb | adamw"),
        ("nvlamb", {"kernel": None}, "optimizer.kernel is not set"),
        ("nvlamb", {"trust_ratio": None}, "optimizer.trust_ratio is not set"),
        ("nvlamb", {"pre_normalization": "clip"}, "optimizer.max_grad_norm is not set"),
        ("adamw", {"trust_ratio": "all"}, "optimizer.trust_ratio is 'all'; allowed: null with algorithm=adamw"),
        ("adamw", {"phi_max": 10.0}, "optimizer.phi_max is 10.0; allowed: null"),
        ("adamw", {"bias_correction": False}, "optimizer.bias_correction is False; allowed: null"),
        ("nvlamb", {"betas": [0.9]}, "optimizer.betas"),
        ("nvlamb", {"eps": 0.0}, "eps is 0.0"),
        ("nvlamb", {"kernel": "warp"}, "kernel is 'warp'"),
        ("nvlamb", {"pre_normalization": "half"}, "pre_normalization is 'half'"),
    ],
)
def test_bad_config_is_named(preset, overrides, message, model):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below
        build_optimizer(model, load(preset, **({"lr": 1e-3} | overrides)))
    assert message in str(error.value)


def test_decay_groups_of_bert(model):
    decay, rest = decay_groups(model, 0.01)
    assert (decay["name"], decay["weight_decay"]) == ("decay", 0.01)
    assert (rest["name"], rest["weight_decay"]) == ("no_decay", 0.0)
    decayed, others = [name for name, _ in decay["params"]], [name for name, _ in rest["params"]]
    assert not any("bias" in name or "LayerNorm" in name for name in decayed)
    assert all(name.endswith("bias") or "LayerNorm" in name for name in others)
    assert "bert.embeddings.word_embeddings.weight" in decayed
    assert "cls.predictions.decoder.weight" not in decayed  # tied
    assert "cls.predictions.transform.LayerNorm.weight" in others
    in_order = [name for name, _ in model.named_parameters()]
    assert decayed == [name for name in in_order if name in set(decayed)]
    assert others == [name for name in in_order if name in set(others)]
    assert sorted(decayed + others) == sorted(in_order)
    optimizer = build_optimizer(model, load("nvlamb", lr=1e-3))
    assert [group["param_names"] for group in optimizer.param_groups] == [decayed, others]


def test_decay_groups_leave_out_what_is_frozen():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.LayerNorm(2))
    model[1].requires_grad_(False)
    (only,) = decay_groups(model, 0.1)
    assert [name for name, _ in only["params"]] == ["0.weight"]
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        decay_groups(model, 0.1)
