"""Two optimizers for one model: the same as each alone with the norm of all gradients."""

import copy
from functools import partial

import pytest
import torch
from transformers import BertConfig, BertForPreTraining

from bert_pretrain.errors import ConfigError
from bert_pretrain.optim import SGD, AdamH, AdamW, Muon, NVLamb, PairedOptimizer, ScheduleFreeAdamW
from bert_pretrain.optim.build import build_optimizer, describe_optimizer, layer_groups, layer_names
from tests.bert_pretrain.optim.test_optimizer_config import load
from tests.oracles import assert_continues_bitwise, assert_same

FIRST = {
    "muon": partial(Muon, lr=0.02),
    "adamh": partial(AdamH, lr=0.02),
    "adamw": partial(AdamW, lr=0.01, max_grad_norm=0.5),
    "schedule_free": partial(ScheduleFreeAdamW, lr=0.01),
    "nvlamb": partial(NVLamb, lr=0.01, kernel="foreach"),
}
SECOND = {
    "adamw": partial(AdamW, lr=0.01, max_grad_norm=0.5),
    "nvlamb": partial(NVLamb, lr=0.02, phi_min=1.0, kernel="fused"),
    "sgd": partial(SGD, lr=0.02, pre_normalization="unit"),
}
PAIRS = [("muon", "adamw"), ("muon", "nvlamb"), ("adamh", "sgd"), ("adamw", "nvlamb"), ("adamw", "sgd")]
PAIRS += [("schedule_free", "adamw"), ("nvlamb", "nvlamb")]


def groups():
    torch.manual_seed(0)
    shapes = {"matrices": [(6, 4), (3, 9)], "decay": [(20, 3)], "no_decay": [(5,), (4,)]}
    return [
        {
            "name": name,
            "weight_decay": 0.0 if name != "decay" else 0.01,
            "params": [(f"{name}{i}", torch.randn(shape, requires_grad=True)) for i, shape in enumerate(kind)],
        }
        for name, kind in shapes.items()
    ]


def params_of(made):
    return [param for group in made for _, param in group["params"]]


def give_gradients(params, step):
    rng = torch.Generator().manual_seed(step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=rng)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_each_updates_its_own_layers_by_the_norm_of_all(pair):
    first, second = FIRST[pair[0]], SECOND[pair[1]]
    made, alone = groups(), groups()
    params, expected = params_of(made), params_of(alone)
    paired = PairedOptimizer(made, first, second)
    single = [first(alone[:1]), second(alone[1:])]
    for step in range(5):
        give_gradients(params, step)
        if step == 2:
            params[-1].grad[1] = float("nan")  # skips the matrices too
        norm = torch.cat([param.grad.flatten() for param in params]).double().norm()
        before = copy.deepcopy((params, dict(paired.state)))
        paired.step()
        assert paired.skipped == float(step == 2)
        if step == 2:
            assert_same(params, before[0])
            continue
        assert paired.grad_norm.item() == pytest.approx(norm.item(), rel=1e-6)
        for optimizer in single:  # each alone, before another one writes gradients
            give_gradients(expected, step)
            optimizer.norm_params = expected
            optimizer.step()
    for a, b in zip(params, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert not paired.nonfinite_state
    report = paired.layer_report()
    assert report.shape == (3, 5)
    assert report[0, :2].isnan().all() == (pair[0] == "adamw")
    assert report[0, 2:].isnan().all() == (pair[1] != "nvlamb")


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_saved_state_and_a_deepcopy_continue_bitwise(pair, tmp_path):
    made = groups()
    params, paired = params_of(made), PairedOptimizer(made, FIRST[pair[0]], SECOND[pair[1]])
    for step in range(3):
        give_gradients(params, step)
        paired.step()

    def rebuild(weights):
        again = groups()
        copies = params_of(again)
        for param, saved in zip(copies, weights, strict=True):
            param.data.copy_(torch.from_numpy(saved))
        return copies, PairedOptimizer(again, FIRST[pair[0]], SECOND[pair[1]])

    assert_continues_bitwise(params, paired, rebuild, give_gradients, tmp_path / "state.pt")


def test_a_rank_without_matrices_updates_its_other_layers():
    """As under sharding: a group of the rank is empty, the norm is that of all layers."""
    made = groups()
    params = params_of(made)
    for group in made:  # as torch's ZeroRedundancyOptimizer gives them
        group["param_names"] = [name for name, _ in group["params"]]
        group["params"] = [param for _, param in group["params"]] if group is not made[0] else []
    paired = PairedOptimizer(made, FIRST["muon"], SECOND["nvlamb"])
    paired.norm_params = params
    give_gradients(params, 0)
    before = [param.detach().clone() for param in params]
    paired.step()
    assert [torch.equal(a, b) for a, b in zip(params, before, strict=True)] == [True] * 2 + [False] * 3
    assert paired.grad_norm.item() == pytest.approx(torch.cat([p.grad.flatten() for p in params]).norm().item(), 1e-6)
    assert paired.layer_report().shape == (3, 3)


def test_a_state_that_does_not_fit_changes_nothing():
    made, others = groups(), groups()
    paired = PairedOptimizer(made, FIRST["muon"], SECOND["adamw"])
    other = PairedOptimizer(others, FIRST["muon"], SECOND["nvlamb"])
    for params, optimizer in ((params_of(made), paired), (params_of(others), other)):
        give_gradients(params, 0)
        optimizer.step()
    before = copy.deepcopy(paired.state_dict())
    with pytest.raises(ConfigError, match="allowed"):
        other.load_state_dict(paired.state_dict())
    with pytest.raises(ConfigError, match="give all groups"):
        paired.add_param_group({"params": [torch.ones(2, requires_grad=True)]})
    after = paired.state_dict()
    for i, entry in before["state"].items():
        assert all(torch.equal(value, after["state"][i][key]) for key, value in entry.items())


def test_loss_scaling_is_undone_once():
    made, alike = groups(), groups()
    params, unscaled = params_of(made), params_of(alike)
    scaled, plain = (PairedOptimizer(some, FIRST["adamw"], SECOND["sgd"]) for some in (made, alike))
    scaled.grad_scale = torch.tensor(1024.0)
    for step in range(3):
        for some, optimizer in ((params, scaled), (unscaled, plain)):
            give_gradients(some, step)
            for param in some if optimizer is scaled else ():
                param.grad *= 1024.0
            optimizer.step()
        assert torch.equal(scaled.grad_norm, plain.grad_norm)
    for a, b in zip(params, unscaled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.fixture(scope="module")
def bert():
    config = BertConfig(
        vocab_size=100, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    return BertForPreTraining(config)


def test_hidden_matrices_of_bert(bert):
    layer = "bert.encoder.layer.0."
    expected = [layer + name for name in ("attention.self.query", "attention.self.key", "attention.self.value")]
    expected += [layer + name for name in ("attention.output.dense", "intermediate.dense", "output.dense")]
    expected = [f"{name}.weight" for name in [*expected, "bert.pooler.dense", "cls.predictions.transform.dense"]]
    config = load("muon", lr=0.01, others={"weight_decay": 0.5, "lr_ratio": 0.25})
    matrices, decay, rest = layer_groups(bert, config)
    assert [name for name, _ in matrices["params"]] == expected
    names = [name for name, _ in decay["params"]]
    assert [name for name in names if "embeddings" not in name] == ["cls.seq_relationship.weight"]
    assert len(names) == 4
    assert all(param.dim() == 1 for _, param in rest["params"])
    assert [matrices["weight_decay"], decay["weight_decay"], rest["weight_decay"]] == [0.01, 0.5, 0.0]
    optimizer = build_optimizer(bert, config)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.0025, 0.0025]
    assert [group.get("lr_ratio") for group in optimizer.param_groups] == [None, 0.25, 0.25]
    assert len(layer_names(optimizer)) == len(list(bert.parameters()))
    first, second, third, _ = describe_optimizer(optimizer, config).splitlines()
    assert first == "optimizer muon, kernel foreach, the others adamw"
    assert second.endswith(": hidden matrices")
    assert third.endswith(": embeddings and output layers")


@pytest.mark.parametrize(("freeze", "kind"), [(["*", "!*.dense.weight"], Muon), (["*.weight"], AdamW)])
def test_frozen_layers_may_leave_one_optimizer(freeze, kind):
    model = BertForPreTraining(
        BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    )
    config = load("muon", lr=0.01, freeze=freeze)
    optimizer = build_optimizer(model, config)
    assert type(optimizer) is kind
    assert kind.__name__.lower() in describe_optimizer(optimizer, config).splitlines()[0]


def test_one_optimizer_with_other_bounds_for_the_rest(bert):
    """phi of NVLAMB for biases, LayerNorm and embeddings alone."""
    options = {"algorithm": "nvlamb", "betas": [0.9, 0.999], "eps": 1e-6, "weight_decay": 0.01, "kernel": "auto"}
    options |= {"pre_normalization": "unit", "trust_ratio": "all", "bias_correction": True, "phi_min": 1.0}
    optimizer = build_optimizer(bert, load("nvlamb", lr=0.01, others=options))
    first, second = optimizer.parts
    assert [first.rules.adaptation.phi_min, second.rules.adaptation.phi_min] == [None, 1.0]
