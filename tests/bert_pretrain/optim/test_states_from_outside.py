"""States that others wrote: into ``optimizer.state``, or as the state of another optimizer. Loaded or refused."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from bert_pretrain.errors import ConfigError
from bert_pretrain.optim import LARS, SGD, Adam, AdamW, NVLamb

FIXTURE = Path(__file__).resolve().parents[2] / "fixtures/run_56623bf/run/checkpoints/step_00000010"
KERNELS = ["reference", "foreach", "fused"]


def parameter(*shape, dtype=torch.float32):
    return torch.nn.Parameter(torch.randn(*(shape or (8, 8)), generator=torch.Generator().manual_seed(0)).to(dtype))


def step(optimizer, *params):
    for seed, param in enumerate(params):
        param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(seed + 1)).to(param.dtype)
    optimizer.step()


def second_moment(*shape):
    return torch.rand(*(shape or (8, 8)), generator=torch.Generator().manual_seed(5))


LAYOUTS = {
    "bfloat16": lambda v: v.bfloat16(),
    "float64": lambda v: v.double(),
    "transposed": lambda v: v.t().contiguous().t(),
    "strided": lambda v: torch.stack([v, v], -1)[..., 0],
    "expanded": lambda v: v[:1].expand(8, 8),
    "requires grad": lambda v: v.clone().requires_grad_(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("where", ["state", "load_state_dict"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_moments_of_another_type_or_layout_become_float32(kernel, where, layout):
    """As if they had been given as contiguous float32; large enough for foreach to cut the layer."""
    given = LAYOUTS[layout](second_moment())
    param, plain = parameter(), parameter()
    optimizer, expected = NVLamb([param], 0.1, kernel=kernel), NVLamb([plain], 0.1, kernel="reference")
    expected.state[plain] = {
        "step": torch.tensor(3.0),
        "exp_avg": torch.zeros(8, 8),
        "exp_avg_sq": given.detach().float().contiguous(),
    }
    entries = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(8, 8), "exp_avg_sq": given}
    if where == "state":
        optimizer.state[param].update(entries)
    else:
        optimizer.load_state_dict(optimizer.state_dict() | {"state": {0: entries}})
    step(optimizer, param)
    step(expected, plain)
    torch.testing.assert_close(param, plain, rtol=1e-6, atol=1e-6)
    for key in ("exp_avg", "exp_avg_sq"):
        own = optimizer.state[param][key]
        assert (own.dtype, own.requires_grad, own.is_contiguous()) == (torch.float32, False, True)


@pytest.mark.parametrize("count", [7, 7.0, torch.tensor([7]), torch.tensor([[7.0]]), torch.tensor(7, dtype=torch.int)])
@pytest.mark.parametrize("make", [NVLamb, AdamW])
def test_a_step_count_may_be_any_number(make, count):
    param = parameter()
    optimizer = make([param], 0.1)
    optimizer.state[param] = {"step": count, "exp_avg": torch.zeros(8, 8), "exp_avg_sq": torch.zeros(8, 8)}
    step(optimizer, param)
    own = optimizer.state[param]["step"]
    assert (own, own.dtype, own.shape) == (8.0, torch.float32, ())


WRONG = {
    "numpy": ({"exp_avg": np.zeros((8, 8))}, "exp_avg of parameter 0 is 'ndarray'; allowed: a tensor"),
    "shape": ({"exp_avg": torch.zeros(8, 4)}, "shape of exp_avg of parameter 0 is (8, 4); allowed: torch.Size([8, 8])"),
    "as many elements": ({"exp_avg_sq": torch.zeros(64)}, "shape of exp_avg_sq of parameter 0 is (64,)"),
    "integers": ({"exp_avg": torch.zeros(8, 8, dtype=torch.int)}, "exp_avg of parameter 0 is 'torch.int32"),
    "sparse": ({"exp_avg": torch.zeros(8, 8).to_sparse()}, "torch.sparse_coo"),
    "complex": ({"exp_avg": torch.zeros(8, 8, dtype=torch.complex64)}, "torch.complex64"),
    "no memory": ({"exp_avg": torch.zeros(8, 8, device="meta")}, "on meta"),
    "missing": ({"exp_avg_sq": None}, "the state of parameter 0 has step, exp_avg, exp_avg_sq"),
    "other": ({"square_avg": torch.zeros(8, 8)}, "has step, exp_avg, exp_avg_sq, square_avg; allowed: step, exp_avg"),
    "negative": ({"step": -1}, "step of parameter 0 is -1; allowed: a number of updates, at least 0"),
    "nan": ({"step": torch.tensor(float("nan"))}, "step of parameter 0 is nan"),
    "many counts": ({"step": torch.zeros(2)}, "shape of step of parameter 0 is (2,)"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("make", [NVLamb, AdamW])
def test_what_is_no_moment_is_refused_and_nothing_changes(make, name):
    entries, message = WRONG[name]
    param = parameter()
    optimizer = make([param], 0.1)
    step(optimizer, param)
    before = copy.deepcopy(optimizer.state_dict())
    entries = {**before["state"][0], **entries}
    with pytest.raises(ConfigError) as error:
        optimizer.load_state_dict({"state": {0: entries}, "param_groups": [before["param_groups"][0] | {"lr": 9.0}]})
    assert message in str(error.value)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert all(torch.equal(value, before["state"][0][key]) for key, value in optimizer.state[param].items())
    if name in ("other", "nan"):
        return  # a step neither touches other entries nor reads values
    weights = param.detach().clone()
    optimizer.state[param] = entries
    with pytest.raises(ConfigError) as error:
        optimizer.step()
    assert message in str(error.value)
    assert torch.equal(param, weights)


def test_one_tensor_as_two_moments_is_refused():
    params = [parameter(), parameter(9)]
    optimizer = NVLamb(params, 0.1, kernel="fused")
    step(optimizer, *params)
    optimizer.state[params[0]]["exp_avg_sq"] = optimizer.state[params[0]]["exp_avg"]
    with pytest.raises(ConfigError, match="two entries of the optimizer's state are one tensor"):
        optimizer.step()


MOMENTS = {"exp_avg": torch.full((8, 8), 0.01), "exp_avg_sq": torch.full((8, 8), 0.02)}
OPTIONS = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01}
LAMBS = {
    "apex": ({}, {"bias_correction": True, "grad_averaging": True, "max_grad_norm": 1.0, "step": 7}),
    "nvidia": ({}, {"lr": torch.tensor(0.1), "step": torch.tensor([7], dtype=torch.int), "max_grad_norm": 1.0}),
    "timm": ({}, {"bias_correction": True, "trust_clip": False, "always_adapt": False, "step": 7}),
    "torch_optimizer": ({"step": 7}, {}),
    "cybertron": ({"step": 7, "weight_norm": torch.tensor(1.0), "adam_norm": 0.5, "trust_ratio": 2.0}, {}),
    "deepspeed": ({"step": 7}, {"bias_correction": True, "max_coeff": 10.0, "min_coeff": 0.01, "max_grad_norm": 0.0}),
}


@pytest.mark.parametrize("name", LAMBS)
def test_states_of_other_lambs_are_continued(name):
    own, options = LAMBS[name]
    param, plain = parameter(), parameter()
    optimizer, expected = NVLamb([param], 0.1), NVLamb([plain], 0.1)
    group = OPTIONS | options | {"params": [0]}
    optimizer.load_state_dict({"state": {0: MOMENTS | own}, "param_groups": [group]})
    expected.state[plain] = {"step": torch.tensor(7.0)} | {key: value.clone() for key, value in MOMENTS.items()}
    step(optimizer, param)
    step(expected, plain)
    assert torch.equal(param, plain)
    again = NVLamb([param], 0.1)
    again.load_state_dict(optimizer.state_dict())
    assert again.state[param]["step"] == 8


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
@pytest.mark.parametrize("target", [NVLamb, LARS])
def test_states_of_other_algorithms_of_torch_are_refused(make, target):
    param = parameter()
    other = make([param], 0.1, **({"momentum": 0.9} if make is torch.optim.SGD else {}))
    step(other, param)
    with pytest.raises(
        ConfigError, match=rf"group 0 of the state .*\(found: lr.*allowed: a state of {target.__name__}"
    ):
        target([param], 0.1).load_state_dict(other.state_dict())


TORCHS = {"adamw": (torch.optim.AdamW, AdamW), "adam": (torch.optim.Adam, Adam), "sgd": (torch.optim.SGD, SGD)}


@pytest.mark.parametrize("name", TORCHS)
def test_a_state_of_torchs_own_class_is_continued(name):
    """With its unfused implementation; the next steps are those of torch's."""
    torchs, ours = TORCHS[name]
    momentum = {"momentum": 0.9} if name == "sgd" else {}
    param, plain = parameter(), parameter()
    other = torchs([plain], 0.1, foreach=False, **momentum)
    step(other, plain)
    param.data.copy_(plain)
    optimizer = ours([param], 0.1)
    optimizer.load_state_dict(other.state_dict())
    for _ in range(2):
        step(other, plain)
        step(optimizer, param)
    torch.testing.assert_close(param, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("made", "target"), [("adamw", Adam), ("adam", AdamW), ("sgd", AdamW), ("adamw", SGD)])
def test_a_state_of_the_sister_class_is_refused(made, target):
    param = parameter()
    other = TORCHS[made][1]([param], 0.1)
    step(other, param)
    with pytest.raises(ConfigError, match="state"):
        target([param], 0.1).load_state_dict(other.state_dict())


@pytest.mark.parametrize("optimizer", [NVLamb, AdamW])
@pytest.mark.parametrize(
    ("entry", "group", "message"),
    [
        ({"step": torch.zeros((), device="meta")}, {}, "the state is none of"),
        ([1], {}, "the state is none of"),
        (None, {}, "the state has entries for '0'; allowed: for parameters of its groups"),
        ({}, {"lr": None}, "the state is none of"),
        ({}, {"betas": 0.9}, "the state is none of"),
        ({}, {"eps": 1e-60}, "eps is 1e-60; allowed: at least"),
    ],
)
def test_a_state_with_wrong_values_changes_nothing(optimizer, entry, group, message):
    param = parameter()
    trained = optimizer([param], 0.1)
    step(trained, param)
    state = copy.deepcopy(trained.state_dict())
    if entry is None:  # as JSON makes of it
        state["state"] = {str(key): value for key, value in state["state"].items()}
    else:
        state["state"][0] = entry if isinstance(entry, list) else state["state"][0] | entry
    state["param_groups"][0] |= group
    target = optimizer([parameter()], 0.2)
    with pytest.raises(ConfigError, match=message):
        target.load_state_dict(state)
    assert (dict(target.state), target.param_groups[0]["lr"]) == ({}, 0.2)


@pytest.mark.parametrize("state", [{}, {"model": 1}, {"encoder.weight": torch.zeros(1)}])
def test_what_is_no_state_of_an_optimizer_is_refused(state):
    with pytest.raises(
        ConfigError, match=r"the state of an optimizer has the entries .*; allowed: state, param_groups"
    ):
        NVLamb([parameter()], 0.1).load_state_dict(state)


def test_the_state_of_an_earlier_version_loads():
    saved = torch.load(FIXTURE / "optimizer.pt", weights_only=True)
    ids = [i for group in saved["param_groups"] for i in group["params"]]
    shapes = {i: saved["state"][i]["exp_avg"].shape for i in ids}
    groups = [{"params": [parameter(*shapes[i]) for i in group["params"]]} for group in saved["param_groups"]]
    optimizer = NVLamb(groups, 0.1)
    optimizer.load_state_dict(saved)
    params = [param for group in optimizer.param_groups for param in group["params"]]
    assert all(
        torch.equal(optimizer.state[p]["exp_avg_sq"], saved["state"][i]["exp_avg_sq"])
        for i, p in zip(ids, params, strict=True)
    )
    step(optimizer, *params)
    assert optimizer.state[params[0]]["step"] == saved["state"][ids[0]]["step"] + 1


@pytest.mark.parametrize("make", [NVLamb, LARS, AdamW, SGD])
def test_hooks_of_torch_are_obeyed_once(make):
    torch.optim.AdamW([parameter()])  # torch wraps the hooks around its own class too
    torch.optim.SGD([parameter()])
    param = parameter()
    optimizer = make([param], 0.1)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    optimizer.register_state_dict_post_hook(lambda _, state: state | {"seen": 1})
    optimizer.register_load_state_dict_pre_hook(lambda _, state: {**state, "state": {}})
    optimizer.register_load_state_dict_post_hook(lambda own: calls.append(len(own.state)))
    step(optimizer, param)
    saved = optimizer.state_dict()
    assert calls == ["pre", "post"]
    assert saved["seen"] == 1
    optimizer.load_state_dict(saved)
    assert calls == ["pre", "post", 0]
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_load_hook_sees_and_changes_what_is_loaded(dtype):
    """A post hook sees float32 moments; a pre hook may rename what it finds."""
    param = parameter(dtype=dtype)
    optimizer = NVLamb([param], 0.1)
    step(optimizer, param)
    saved = optimizer.state_dict()
    saved["state"][0]["m"] = saved["state"][0].pop("exp_avg")
    other = NVLamb([param], 0.1)

    def rename(_, state):
        return state | {"state": {0: {("exp_avg" if k == "m" else k): v for k, v in state["state"][0].items()}}}

    seen = []
    other.register_load_state_dict_pre_hook(rename)
    other.register_load_state_dict_post_hook(lambda own: seen.append(own.state[param]["exp_avg"].clone()))
    other.load_state_dict(saved)
    assert torch.equal(seen[0], saved["state"][0]["m"])


@pytest.mark.parametrize("make", [NVLamb, LARS, AdamW, SGD])
@pytest.mark.parametrize("way", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_copies_go_on_alike_and_take_new_groups(make, way):
    param = parameter()
    optimizer = make([param], 0.1)
    step(optimizer, param)
    twin, other = way((param, optimizer))
    added = [parameter(5), parameter(5)]
    for own, run, extra in ((param, optimizer, added[0]), (twin, other, added[1])):
        run.add_param_group({"params": [extra], "lr": 0.02})
        run.param_groups[0] |= {"lr": 0.03, "weight_decay": 0.2}
        step(run, own, extra)
        run.zero_grad()
    assert torch.equal(param, twin)
    assert torch.equal(*added)
    assert param.grad is None
