"""Presets, option checks, decay groups and ``build_optimizer``."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from transformers import BertConfig, BertForPreTraining

from bert_pretrain.config import PretrainConfig
from bert_pretrain.errors import ConfigError
from bert_pretrain.optim import LARS, SGD, Adam, AdamH, AdamW, Muon, NVLamb, PairedOptimizer, ScheduleFreeAdamW
from bert_pretrain.optim.build import build_optimizer, decay_groups, describe_optimizer, layer_names
from bert_pretrain.optim.options import OptimizerConfig, ScheduleConfig
from bert_pretrain.options.config_loading import load_config

PRESETS = Path(__file__).resolve().parents[3] / "configs" / "optimizer"


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


EXPECTED = {
    "nvlamb": (NVLamb, {"pre_normalization": "unit", "trust_ratio": "all", "betas": (0.9, 0.999)}),
    "nvlamb_small_batch": (NVLamb, {"pre_normalization": "unit", "trust_ratio": "all", "betas": (0.9, 0.98)}),
    "nvidia_code": (NVLamb, {"pre_normalization": "clip", "trust_ratio": "decayed", "max_grad_norm": 1.0}),
    "lamb": (NVLamb, {"pre_normalization": "none", "trust_ratio": "all"}),
    "lars": (LARS, {"momentum": 0.9, "weight_decay": 5e-4, "trust_coefficient": 0.001, "clip": False}),
    "adamw": (AdamW, {"betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01, "max_grad_norm": 1.0}),
    "adam": (Adam, {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "max_grad_norm": 1.0}),
    "sgd": (SGD, {"momentum": 0.9, "weight_decay": 1e-4, "max_grad_norm": None}),
    "schedule_free_adamw": (ScheduleFreeAdamW, {"betas": (0.9, 0.999), "eps": 1e-6, "max_grad_norm": 1.0}),
}
PAIRS = {"muon": (Muon, AdamW), "muon_nvlamb": (Muon, NVLamb), "muonh": (Muon, AdamW), "adamh": (AdamH, AdamW)}


def found_option(optimizer, name):
    if name in optimizer.param_groups[0]:
        return optimizer.param_groups[0][name]
    if isinstance(optimizer, NVLamb):
        flat = vars(optimizer.rules) | {"trust_ratio": optimizer.rules.trust_ratio.layers}
        return flat[name]
    return getattr(optimizer, name)


@pytest.mark.parametrize("name", EXPECTED)
def test_preset_builds_and_steps(name, model):
    config = load(name, lr=1e-3)
    optimizer = build_optimizer(model, config)
    kind, options = EXPECTED[name]
    assert type(optimizer) is kind
    for option, value in options.items():
        assert found_option(optimizer, option) == value, option
    if kind is NVLamb:
        assert optimizer.rules.bias_correction
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-3]
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert optimizer.skipped == 0
    assert optimizer.grad_norm > 0
    names = [name for name, _ in model.named_parameters()]
    assert sorted(layer_names(optimizer)) == (sorted(names) if kind in (NVLamb, LARS, ScheduleFreeAdamW) else [])


@pytest.mark.parametrize("name", PAIRS)
def test_a_preset_with_two_optimizers_builds_and_steps(name, model):
    optimizer = build_optimizer(model, load(name, lr=1e-3))
    assert type(optimizer) is PairedOptimizer
    assert tuple(type(part) for part in optimizer.parts) == PAIRS[name]
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert optimizer.skipped == 0


@pytest.mark.parametrize("name", EXPECTED)
def test_the_description_names_the_layers_that_decay(name, model):
    config = load(name, lr=1e-3)
    text = describe_optimizer(build_optimizer(model, config), config)
    first, decay, rest = text.splitlines()
    assert first.startswith(f"optimizer {config.algorithm}")
    decayed = [p for n, p in model.named_parameters() if not n.endswith("bias") and "LayerNorm" not in n]
    count, size = len(decayed), sum(p.numel() for p in decayed)
    assert decay.split()[:2] == ["decay", f"{config.weight_decay:g}"]
    assert f"{count} layers, {size:,} parameters: all but biases and normalisation layers" in decay
    total, everything = len(list(model.parameters())), sum(p.numel() for p in model.parameters())
    assert f"{total - count} layers, {everything - size:,} parameters: biases and normalisation layers" in rest
    assert rest.split()[:2] == ["decay", "0"]


def test_larc_is_lars_with_clip(model):
    assert build_optimizer(model, load("lars", lr=1.0, clip=True)).clip


def test_every_preset_is_tested_and_leaves_lr_to_the_recipe():
    assert {path.stem for path in PRESETS.glob("*.yaml")} == {*EXPECTED, *PAIRS}
    for name in (*EXPECTED, *PAIRS):
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
        ("nvlamb", {"algorithm": "adamax"}, "optimizer.algorithm is 'adamax'; allowed: nvlamb, lars, adamw"),
        ("nvlamb", {"kernel": None}, "optimizer.kernel is not set"),
        ("nvlamb", {"trust_ratio": None}, "optimizer.trust_ratio is not set"),
        ("nvlamb", {"pre_normalization": "clip"}, "optimizer.max_grad_norm is not set"),
        ("adamw", {"trust_ratio": "all"}, "optimizer.trust_ratio is 'all'; allowed: null with algorithm=adamw"),
        ("adamw", {"phi_max": 10.0}, "optimizer.phi_max is 10.0; allowed: null"),
        (
            "lamb",
            {"phi_min": 2.0, "phi_max": 1.0},
            "optimizer.phi_min is 2.0; allowed: at most optimizer.phi_max (1.0)",
        ),
        ("adamw", {"bias_correction": False}, "optimizer.bias_correction is False; allowed: null"),
        ("nvlamb", {"betas": [0.9]}, "optimizer.betas is [0.9]; allowed: two numbers"),
        ("adam", {"betas": [0.9, 1.0]}, "optimizer.betas is [0.9, 1.0]; allowed: two numbers in [0, 1)"),
        ("lamb", {"betas": [-0.1, 0.9]}, "optimizer.betas is [-0.1, 0.9]"),
        ("nvlamb", {"eps": 0.0}, "optimizer.eps is 0.0"),
        (
            "nvlamb",
            {"kernel": "warp"},
            "optimizer.kernel is 'warp'; allowed: auto, reference, foreach, fused, apex",
        ),
        ("nvlamb", {"kernel": "apex"}, "kernel is 'apex'; allowed: foreach or reference"),
        ("nvlamb", {"pre_normalization": "half"}, "optimizer.pre_normalization is 'half'; allowed: unit, clip, none"),
        ("nvlamb", {"momentum": 0.9}, "optimizer.momentum is 0.9; allowed: null with algorithm=nvlamb"),
        ("nvlamb", {"weight_decay": -0.1}, "optimizer.weight_decay is -0.1"),
        ("sgd", {"momentum": 1.0}, "optimizer.momentum is 1.0; allowed: a number in [0, 1)"),
        ("sgd", {"betas": [0.9, 0.999]}, "optimizer.betas is [0.9, 0.999]; allowed: null with algorithm=sgd"),
        ("sgd", {"momentum": None}, "optimizer.momentum is not set; optimizer.algorithm=sgd needs it"),
        ("sgd", {"lr": -1.0}, "optimizer.lr is -1.0"),
        ("lars", {"trust_coefficient": 0.0}, "optimizer.trust_coefficient is 0.0"),
        ("lars", {"trust_ratio": "some"}, "optimizer.trust_ratio is 'some'; allowed: all, decayed"),
        ("lars", {"clip": None}, "optimizer.clip is not set"),
        ("lars", {"max_grad_norm": 1.0}, "optimizer.max_grad_norm is 1.0; allowed: null with algorithm=lars"),
        ("adamw", {"max_grad_norm": 0.0}, "optimizer.max_grad_norm is 0.0"),
        ("adamw", {"kernel": "fused"}, "optimizer.kernel is 'fused'; allowed: null with algorithm=adamw"),
        ("adamw", {"pre_normalization": "clip", "max_grad_norm": None}, "optimizer.max_grad_norm is not set"),
        ("lars", {"pre_normalization": "unit"}, "optimizer.pre_normalization is 'unit'; allowed: null"),
        ("muon", {"others": None}, "optimizer.others is not set; optimizer.algorithm=muon updates hidden matrices"),
        ("muon", {"kernel": "fused"}, "optimizer.kernel is 'fused'; allowed: reference, foreach"),
        ("muon", {"others": {"eps": None}}, "optimizer.others.eps is not set; optimizer.others.algorithm=adamw"),
        ("muon", {"others": {"lr_ratio": 0.0}}, "optimizer.others.lr_ratio is 0.0; allowed: above 0, up to 1e+06"),
        ("muon", {"others": {"algorithm": "adamh"}}, "optimizer.others.algorithm is 'adamh'; allowed: nvlamb, lars"),
        ("muonh", {"weight_decay": 0.1}, "optimizer.weight_decay is 0.1; allowed: 0: the norm"),
        ("adamh", {"weight_decay": 0.1}, "optimizer.weight_decay is 0.1; allowed: 0: the norm"),
    ],
)
def test_bad_config_is_named(preset, overrides, message, model):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below
        build_optimizer(model, load(preset, **({"lr": 1e-3} | overrides)))
    assert message in str(error.value)


def test_an_option_of_others_without_others_is_named():
    with pytest.raises(ConfigError, match=r"an option of optimizer.others is set, which is null here"):
        load_config("pretrain", ["recipe=demo", "optimizer.others.lr_ratio=2"], PretrainConfig)


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


def test_decay_groups_leave_out_frozen_parameters():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.LayerNorm(2))
    model[1].requires_grad_(False)
    (only,) = decay_groups(model, 0.1)
    assert [name for name, _ in only["params"]] == ["0.weight"]
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        decay_groups(model, 0.1)
