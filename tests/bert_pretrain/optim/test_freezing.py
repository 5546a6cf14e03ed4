"""Frozen parameters: which they are, no gradient, and norms and trust ratios over what is trained."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForPreTraining

from bert_pretrain.data.collate import Shape, dummy_batch
from bert_pretrain.errors import ConfigError
from bert_pretrain.model.bert import PretrainingModel, build_model
from bert_pretrain.model.cpu_vocabulary_loss import vocabulary_loss
from bert_pretrain.model.flops import training_flops
from bert_pretrain.model.options import ModelConfig, SpeedConfig
from bert_pretrain.optim.build import build_optimizer, describe_optimizer, layer_names, moments_by_name
from bert_pretrain.optim.freezing import describe_frozen, freeze_parameters, frozen_names
from bert_pretrain.optim.options import OptimizerConfig
from tests.conftest import LENGTH, VOCAB_SIZE
from tests.oracles import Oracle

FAST = SpeedConfig(
    group_by_length=True,
    packing=False,
    last_layer_rows=True,
    fused_qkv=True,
    fast_dropout=True,
    fused_loss=True,
    pad_vocabulary=False,
    compile=False,
    cuda_graphs=False,
)
FREEZE = {
    "embeddings": ["bert.embeddings.*"],
    "lower part": ["bert.embeddings.*", "bert.encoder.layer.[01].*"],
    "all but embeddings": ["*", "!*.embeddings.*"],
    "some of a joined weight": ["*.query.*", "*.key.bias"],
}
WORD = "bert.embeddings.word_embeddings.weight"


def new_model() -> PretrainingModel:
    torch.manual_seed(3)
    shape = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(vocab_size=97, max_position_embeddings=16, attn_implementation="eager", **shape, **dropout)
    return PretrainingModel(BertForPreTraining(config), FAST)


def options(freeze: list[str], algorithm: str = "nvlamb", **others: object) -> OptimizerConfig:
    values: dict = {"algorithm": algorithm, "lr": 0.01, "weight_decay": 0.01, "freeze": freeze}
    values |= {"betas": [0.9, 0.999], "eps": 1e-6} if algorithm != "sgd" else {"momentum": 0.9}
    if algorithm == "nvlamb":
        values |= {"pre_normalization": "unit", "trust_ratio": "all", "bias_correction": True, "kernel": "auto"}
    return OptimizerConfig(**{**values, **others})


def sample(step: int) -> dict:
    """Three samples of 12 tokens with four masked words in all, as both forward passes take them."""
    rng = torch.Generator().manual_seed(step)
    ids = torch.randint(5, 97, (3, 12), generator=rng)
    positions = torch.tensor([2, 7, 15, 30])
    labels = torch.randint(5, 97, (4,), generator=rng)
    segments = (torch.arange(12) >= 6).long().expand(3, 12)
    return {"ids": ids, "positions": positions, "labels": labels, "segments": segments, "next": torch.tensor([0, 1, 1])}


def our_backward(model: PretrainingModel, step: int) -> None:
    x = sample(step)
    with model.step():
        out = model(x["ids"], torch.ones_like(x["ids"]), x["segments"], x["positions"], x["labels"], x["next"])
        (out.mlm_loss / 4 + out.nsp_loss / 3).backward()


def gradients_of_transformers(bert: BertForPreTraining, step: int) -> dict[str, np.ndarray]:
    """The gradients of ``transformers``' own loss, by name, of the parameters with ``requires_grad``."""
    x = sample(step)
    labels = torch.full((36,), -100)
    labels[x["positions"]] = x["labels"]
    bert.zero_grad()
    bert(
        input_ids=x["ids"], token_type_ids=x["segments"], labels=labels.view(3, 12), next_sentence_label=x["next"]
    ).loss.backward()
    return {name: p.grad.double().numpy().copy() for name, p in bert.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kernel", ["reference", "foreach", "fused"])
@pytest.mark.parametrize("freeze", FREEZE.values(), ids=list(FREEZE))
def test_the_step_is_that_of_transformers_with_requires_grad_false(freeze: list[str], kernel: str) -> None:
    """Two steps: frozen weights keep their bits; ||G||, trust ratios and weights are those of float64 equations over
    the trained layers alone, with gradients from ``transformers``."""
    model = new_model()
    start = {name: value.clone() for name, value in model.bert.state_dict().items()}
    optimizer = build_optimizer(model, options(freeze, kernel=kernel))
    names = layer_names(optimizer)
    reference = copy.deepcopy(model.bert)  # with the same requires_grad
    by_name = dict(reference.named_parameters())
    decays = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["param_names"]}
    oracle = Oracle([(by_name[n].detach().numpy(), 0.01, decays[f"bert.{n}"]) for n in names])
    for step in range(2):
        grads = gradients_of_transformers(reference, step)
        assert set(grads) == set(names)
        our_backward(model, step)
        assert all((p.grad is None) != p.requires_grad for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        hand = math.sqrt(sum(float((g**2).sum()) for g in grads.values()))
        assert float(optimizer.grad_norm) == pytest.approx(hand, rel=1e-5)
        oracle.step([grads[name] for name in names])
        ratios, weight_norms, update_norms = optimizer.layer_report()
        for place, (name, (w_norm, u_norm)) in enumerate(zip(names, oracle.norms, strict=True)):
            if not name.endswith("key.bias"):  # its gradient is rounding alone
                expected = w_norm / u_norm if w_norm and u_norm else 1.0
                assert float(weight_norms[place]) == pytest.approx(w_norm, rel=1e-5)
                assert float(update_norms[place]) == pytest.approx(u_norm, rel=1e-3)
                assert float(ratios[place]) == pytest.approx(expected, rel=1e-3)
        with torch.no_grad():
            for name, w in zip(names, oracle.w, strict=True):
                by_name[name].copy_(torch.from_numpy(w))
    for name, value in model.bert.named_parameters():
        if name not in names:
            assert torch.equal(value, start[name]), name
        elif not name.endswith("key.bias"):
            assert torch.allclose(value, by_name[name], rtol=1e-4, atol=2e-5), name


def test_cached_weights_of_which_some_are_frozen_have_the_gradients_of_the_others() -> None:
    """In bf16 every weight is cast and cached, and the joined query, key and value have one gradient."""
    grads = []
    for freeze in ([], FREEZE["some of a joined weight"]):
        model = new_model()
        freeze_parameters(model, freeze)
        with torch.autocast("cpu", torch.bfloat16):
            our_backward(model, 0)
        grads.append({name: p.grad for name, p in model.named_parameters()})
    everything, some = grads
    frozen = {name for name, grad in some.items() if grad is None}
    assert frozen == {name for name in everything if ".query." in name or name.endswith("key.bias")}
    assert all(torch.equal(some[name], everything[name]) for name in some.keys() - frozen)


def test_backward_stops_below_the_lowest_trained_layer() -> None:
    model = new_model()
    freeze_parameters(model, FREEZE["lower part"])
    outputs: dict[int, torch.Tensor] = {}
    run_layer = model.pieces.layer

    def watched(layer: torch.nn.Module, *rest: object) -> torch.Tensor:
        out = run_layer(layer, *rest)
        outputs[len(outputs)] = out
        return out

    model.pieces = model.pieces._replace(layer=watched)
    our_backward(model, 0)
    assert [out.requires_grad for out in outputs.values()] == [False, False, True]


def test_the_vocabulary_loss_without_a_gradient_of_its_weight() -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((5, 8), (11, 8), (11,)))
    labels = torch.tensor([3, 10, -100, 0, 7])
    for trained in ((0, 2), (0,), (1, 2), (2,)):
        grads = []
        for fused in (True, False):
            parts = [part.clone().requires_grad_(i in trained) for i, part in enumerate((x, weight, bias))]
            if fused:
                loss, _ = vocabulary_loss(*parts, labels)
            else:
                loss = F.cross_entropy(F.linear(parts[0], parts[1], parts[2]), labels, reduction="sum")
            loss.backward()
            grads.append([part.grad for part in parts])
        for place, (found, expected) in enumerate(zip(*grads, strict=True)):
            assert (found is None) == (place not in trained)
            assert found is None or torch.allclose(found, expected, atol=1e-5)


def test_patterns_are_applied_in_order() -> None:
    model = new_model()
    freeze_parameters(model, ["*", "!bert.encoder.layer.2.*", "*.layer.2.output.*"])
    trained = [name.removeprefix("bert.") for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 16 - 4
    assert all(name.startswith("bert.encoder.layer.2.") and ".2.output." not in name for name in trained)
    freeze_parameters(model, [])
    assert len([p for p in model.parameters() if p.requires_grad]) == len(trained), "nothing asked, nothing changed"


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (["bert.embedings.*"], "'bert.embedings.*', which matches no parameter; did you mean bert.embeddings.*"),
        (["*", "!bert.encoder.layr.0.*"], "'!bert.encoder.layr.0.*', which matches no parameter; did you mean"),
        (["bert.encoder.layer.7.*"], "which matches no parameter; did you mean bert.encoder.layer."),
        (["*"], "['*'], which freezes all 62 parameters"),
        (["cls.predictions.decoder.weight"], f"cls.predictions.decoder.weight is tied to {WORD}; give that name"),
    ],
)
def test_a_wrong_pattern_is_named(freeze: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_optimizer(new_model(), options(freeze))
    assert message in str(error.value)


def test_the_log_names_what_is_frozen() -> None:
    model = new_model()
    optimizer = build_optimizer(model, options(["bert.embeddings.*", "*.layer.[01].*", "cls.predictions.bias"]))
    frozen = 5 + 2 * 16 + 1
    size = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    lines = describe_frozen(model).splitlines()
    assert lines[0].split(maxsplit=1)[1] == (
        f"{frozen} of 62 layers, {size:,} parameters: bert.embeddings (5), bert.encoder.layer.0-1 (16 each), "
        "cls.predictions (1 of 5)"
    )
    assert f"  cls.predictions.decoder.weight is tied to {WORD}: frozen" in lines
    assert f"{62 - frozen} layers" not in describe_optimizer(optimizer, options([]))  # two groups share them
    assert describe_frozen(new_model()) == ""


@pytest.mark.parametrize("algorithm", ["nvlamb", "adamw", "sgd"])
def test_layers_that_were_trained_keep_their_moments_when_others_join(algorithm: str) -> None:
    before = new_model()
    first = build_optimizer(before, options(FREEZE["embeddings"], algorithm))
    our_backward(before, 0)
    first.step()
    after = new_model()
    second = build_optimizer(after, options([], algorithm))
    state, line = moments_by_name(first.state_dict(), second)
    second.load_state_dict(state)
    assert line.startswith("57 layers keep their moments; 5 were not trained before and start at 0")
    old, new = (dict(model.named_parameters()) for model in (before, after))
    for name, param in new.items():
        found, expected = second.state.get(param, {}), first.state.get(old[name], {})
        assert found.keys() == expected.keys()
        assert (not found) == name.startswith("bert.bert.embeddings."), name
        assert all(torch.equal(value, expected[key]) for key, value in found.items())
    our_backward(after, 1)
    second.step()
    if algorithm != "sgd":
        steps = {name: int(second.state[param]["step"]) for name, param in new.items()}
        assert {steps[name] for name in steps if name.startswith("bert.bert.embeddings.")} == {1}
        assert {steps[name] for name in steps if not name.startswith("bert.bert.embeddings.")} == {2}
    third = build_optimizer(new_model(), options(FREEZE["embeddings"], algorithm))
    state, line = moments_by_name(second.state_dict(), third)
    third.load_state_dict(state)
    assert line.endswith("those of 5, which this run does not train, are left out")
    assert moments_by_name(third.state_dict(), third)[1] == ""


@pytest.mark.parametrize(
    "freeze",
    [
        [],
        ["bert.embeddings.*"],
        ["bert.embeddings.*", "*.layer.[01].*"],
        ["bert.embeddings.*", "*.layer.0.*", "!*.layer.0.output.LayerNorm.bias"],
        ["*.layer.*.dense.weight"],
        ["*", "!cls.*"],
        ["*", "!*.layer.1.output.dense.weight"],
        ["*", "!*.word_embeddings.weight"],
    ],
)
@pytest.mark.parametrize("next_sentence", [True, False])
def test_flops_are_those_that_torch_counts(freeze: list[str], next_sentence: bool) -> None:
    """Of the matrix products in the forward and backward pass of a batch without padding."""
    shape = ModelConfig(16, 4, 2, 24, LENGTH, VOCAB_SIZE, "gelu", 0.0, 0.0, 0.02, "eager", next_sentence)
    only_joined = replace(FAST, group_by_length=False, last_layer_rows=False, fast_dropout=False, fused_loss=False)
    model = build_model(shape, only_joined, 1, torch.device("cpu"))
    freeze_parameters(model, freeze)
    batch = dummy_batch(Shape(3, LENGTH, 5, False))
    labels = {"masked_labels": torch.full((5,), 7), "next_sentence_labels": torch.zeros(3, dtype=torch.long)}
    with FlopCounterMode(display=False) as counter:
        out = model(*replace(batch, **labels).tensors())
        (out.mlm_loss + out.nsp_loss).backward()
    counts = 3, 3 * LENGTH, 3 * LENGTH**2, 5
    assert training_flops(shape, *counts, frozen=frozen_names(model)) == counter.get_total_flops()
