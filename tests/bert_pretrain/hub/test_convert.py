"""``bert-pretrain convert``: PyTorch checkpoints of other programs, made here from a tiny model of ``transformers``."""

import collections
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch.utils.data import DataLoader, Dataset, RandomSampler
from transformers import AutoTokenizer, BertConfig, BertForPreTraining

from bert_pretrain.checkpoint.find import newest_valid
from bert_pretrain.checkpoint.store import CheckpointStore, load_optimizer_state, load_progress
from bert_pretrain.data.tokenizer_files import is_lowercase
from bert_pretrain.hub.convert.command import main
from bert_pretrain.optim.build import decay_groups
from bert_pretrain.optim.nvlamb import NVLamb
from scripts.prove_convert import CONFIG, VOCABULARY
from tests.conftest import ROOT, TEST_RECIPE, VOCAB_SIZE, assert_as_new_files, run_module

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def model() -> BertForPreTraining:
    torch.manual_seed(1)
    made = BertForPreTraining(BertConfig(**{**CONFIG, "layer_norm_eps": 1e-12})).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += torch.randn_like(parameter) * 0.2
    return made


@pytest.fixture
def weights(model: BertForPreTraining) -> Tensors:
    """Each weight once, as the state dicts of 2019 and of NVIDIA's code have them: the decoder's bias has one name."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    del state["cls.predictions.decoder.bias"]
    return state


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Configuration and vocabulary, for a checkpoint to lie beside."""
    path = tmp_path / "source"
    path.mkdir()
    (path / "bert_config.json").write_text(json.dumps(CONFIG))
    (path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return path


def convert(source: Path, *options: str) -> Path:
    out = source.parent.parent / "out" if source.is_file() else source.parent / "out"
    main([f"source={source}", f"out_dir={out}", *options])
    return out


def refused(capsys: pytest.CaptureFixture[str], source: Path, *options: str) -> str:
    """The one line that a conversion ends with; nothing may have been written."""
    before = sorted(source.parent.parent.rglob("*"))
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        convert(source, *options)
    out, error = capsys.readouterr()
    assert out == ""
    assert len(error.splitlines()) == 1
    assert sorted(source.parent.parent.rglob("*")) == before
    return error


def assert_equal(out: Path, expected: BertForPreTraining, vocabulary: int = 40) -> None:
    """``transformers`` loads ``out`` with no key missing or left over, and computes the very same logits."""
    loaded, report = BertForPreTraining.from_pretrained(out, output_loading_info=True)
    assert not any(report.values()), report
    assert loaded.config.vocab_size == vocabulary
    ids = torch.arange(5, 17)[None] % 40
    with torch.no_grad():
        found, wanted = loaded.eval()(ids), expected(ids)
    assert torch.equal(found.prediction_logits[..., :40], wanted.prediction_logits)
    assert torch.equal(found.seq_relationship_logits, wanted.seq_relationship_logits)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.convert_tokens_to_ids(VOCABULARY) == list(range(40))
    assert tokenizer("Word3 word9")["input_ids"] == [2, 8, 14, 3]


def as_nvidia(weights: Tensors, pad_to: int = 40) -> Tensors:
    """NVIDIA's names, the vocabulary padded with rows of its own."""
    renamed = {}
    for name, value in weights.items():
        if value.shape[0] == 40:
            value = torch.cat([value, torch.randn(pad_to - 40, *value.shape[1:])])
        for place in ("intermediate", "pooler", "transform"):
            name = name.replace(f"{place}.dense.", f"{place}.dense_act.")
        renamed[name] = value
    renamed["cls.predictions.decoder.weight"] = renamed["bert.embeddings.word_embeddings.weight"]
    return renamed


@pytest.mark.parametrize("prefix", ["", "module."])
def test_nvidia(prefix: str, folder: Path, model: BertForPreTraining, weights: Tensors, capsys) -> None:
    padded = as_nvidia(weights, 48)
    content = {"model": {prefix + name: value for name, value in padded.items()}, "optimizer": {}, "epoch": 3}
    torch.save(content, folder / "ckpt_10.pt")
    torch.save({}, folder / "ckpt_9.pt")
    (folder / "bert_config.json").write_text(json.dumps({**CONFIG, "vocab_size": 41}))
    out = convert(folder)
    assert_as_new_files(out)
    assert_equal(out, model, 48)
    assert BertConfig.from_pretrained(out).hidden_act == "gelu"
    said = capsys.readouterr().out
    assert "ckpt_10.pt: NVIDIA DeepLearningExamples, 46 weights, BertForPreTraining" in said
    assert "padded from 41 to 48 rows" in said
    assert "left out: epoch (3)" in said
    assert not list(folder.parent.glob(".*"))


def nvidia_optimizer(model: BertForPreTraining, era: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """A state dict that torch numbers, after one step of AdamW in NVIDIA's two groups, and each gradient by name."""
    named = list(model.named_parameters())
    exempt = ("bias", "gamma", "beta", "LayerNorm")
    groups = [
        {"params": [p for n, p in named if not any(part in n for part in exempt)], "weight_decay": 0.01},
        {"params": [p for n, p in named if any(part in n for part in exempt)], "weight_decay": 0.0},
    ]
    masters = [{**group, "params": [p.detach().clone().requires_grad_() for p in group["params"]]} for group in groups]
    optimizer = torch.optim.AdamW(masters, lr=0.0, betas=(0.9, 0.999))
    grads = {name: torch.randn_like(parameter) for name, parameter in named}
    names = {id(parameter): name for name, parameter in named}
    for group, master in zip(groups, masters, strict=True):
        for parameter, copy in zip(group["params"], master["params"], strict=True):
            copy.grad = grads[names[id(parameter)]].clone()
    optimizer.step()
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["step"] = 7038 if era == "apex" else torch.tensor([7038], dtype=torch.int)
        group["lr"] = 6e-3 if era == "apex" else torch.tensor(6e-3)
    for entry in state["state"].values():
        del entry["step"]  # FusedLAMB counts by group
    content = {"optimizer": state, "epoch": 0}
    if era == "apex":
        content |= {"master params": [p for group in masters for p in group["params"]], "files": [1, "a.hdf5"]}
    else:
        content |= {"grad_scaler": {"scale": 65536.0, "growth_factor": 2.0}}
    return content, grads


@pytest.mark.parametrize(("era", "act"), [("apex", "gelu"), ("amp", "gelu_pytorch_tanh")])
def test_nvidias_moments(era: str, act: str, folder: Path, model, weights: Tensors, capsys) -> None:
    """In float32 from the masters where the weights are fp16; each moment is that of the weight with this name."""
    content, grads = nvidia_optimizer(model, era)
    stored = as_nvidia(weights)
    content["model"] = {name: value.half() for name, value in stored.items()} if era == "apex" else stored
    torch.save(content, folder / "ckpt_7038.pt")
    out = convert(folder, "moments=true")
    assert "moments of step 7,038" in capsys.readouterr().out
    (path,) = CheckpointStore(out / "checkpoints", 1, None).all()
    assert newest_valid(out / "checkpoints", pytest.fail) == path
    assert (path.name, load_progress(path).step) == ("step_00007038", 7038)
    loaded = BertForPreTraining.from_pretrained(path / "model")
    assert loaded.config.hidden_act == act
    for name, value in weights.items():
        assert torch.equal(loaded.state_dict()[name], value), name
    optimizer = NVLamb(decay_groups(torch.nn.ModuleDict({"bert": loaded}), 0.01), lr=1e-3)
    optimizer.load_state_dict(load_optimizer_state(path, torch.device("cpu")))
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            grad, state = grads[name.removeprefix("bert.")], optimizer.state[parameter]
            torch.testing.assert_close(state["exp_avg"], 0.1 * grad)
            torch.testing.assert_close(state["exp_avg_sq"], 0.001 * grad**2)
            assert state["step"] == 7038
    assert "pre_normalization: clip" in (path / "config.yaml").read_text()


def test_a_run_begins_with_the_moments(folder: Path, shard_dir: Path, tmp_path: Path, capsys) -> None:
    shape = {"vocab_size": VOCAB_SIZE, "hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 16}
    made = BertForPreTraining(BertConfig(**{**CONFIG, **shape}))
    content, _ = nvidia_optimizer(made, "amp")
    stored = {name: value for name, value in made.state_dict().items() if name != "cls.predictions.decoder.bias"}
    torch.save(content | {"model": as_nvidia(stored)}, folder / "ckpt_7038.pt")
    (folder / "bert_config.json").write_text(json.dumps({**CONFIG, **shape}))
    out = convert(folder, "moments=true", "vocab=none", "hidden_act=gelu")
    words = [*TEST_RECIPE, f"data.dir={shard_dir}", f"init_from={out}", "init_moments=keep", "schedule.total_steps=2"]
    wrong = run_module("bert_pretrain.pretrain", *words, f"run_dir={tmp_path}/wrong")
    assert wrong.returncode == 2
    assert "was trained with optimizer.pre_normalization=clip" in wrong.stderr
    words += [f"run_dir={tmp_path}/run", "optimizer=nvidia_code", "optimizer.lr=1e-3"]
    words.remove("optimizer.phi_min=null")
    done = run_module("bert_pretrain.pretrain", *words)
    assert done.returncode == 0, done.stderr
    state = load_optimizer_state(tmp_path / "run" / "checkpoints" / "step_00000002", torch.device("cpu"))
    assert {float(entry["step"]) for entry in state["state"].values()} == {7040.0}


UER_LAYER = {
    "attention.self.query": "self_attn.linear_layers.0",
    "attention.self.key": "self_attn.linear_layers.1",
    "attention.self.value": "self_attn.linear_layers.2",
    "attention.output.dense": "self_attn.final_linear",
    "attention.output.LayerNorm": "layer_norm_1",
    "intermediate.dense": "feed_forward.linear_1",
    "output.dense": "feed_forward.linear_2",
    "output.LayerNorm": "layer_norm_2",
}
UER_OUTSIDE = {  # today's name, that until 2022
    "bert.embeddings.word_embeddings": ("embedding.word.embedding", "embedding.word_embedding"),
    "bert.embeddings.position_embeddings": ("embedding.pos.embedding", "embedding.position_embedding"),
    "bert.embeddings.token_type_embeddings": ("embedding.seg.embedding", "embedding.segment_embedding"),
    "bert.embeddings.LayerNorm": ("embedding.layer_norm", "embedding.layer_norm"),
    "cls.predictions.transform.dense": ("target.mlm.linear_1", "target.mlm_linear_1"),
    "cls.predictions.transform.LayerNorm": ("target.mlm.layer_norm", "target.layer_norm"),
    "cls.predictions.decoder": ("target.mlm.linear_2", "target.mlm_linear_2"),
    "cls.predictions": ("target.mlm.linear_2", "target.mlm_linear_2"),
    "bert.pooler.dense": ("target.sp.linear_1", "target.nsp_linear_1"),
    "cls.seq_relationship": ("target.sp.linear_2", "target.nsp_linear_2"),
}


def as_uer(weights: Tensors, old: bool) -> Tensors:
    renamed = {}
    for name, value in weights.items():
        module, _, kind = name.rpartition(".")
        if module.startswith("bert.encoder.layer."):
            number, _, part = module.removeprefix("bert.encoder.layer.").partition(".")
            target = f"encoder.transformer.{number}.{UER_LAYER[part]}"
        else:
            target = UER_OUTSIDE[module][old]
        if "layer_norm" in target:
            kind = {"weight": "gamma", "bias": "beta"}[kind]
        if "seg" in target:
            value = torch.cat([torch.zeros(1, value.shape[1]), value])
        renamed[f"{target}.{kind}"] = value
    return renamed


@pytest.mark.parametrize("old", [False, True])
def test_uer(old: bool, folder: Path, model, weights: Tensors) -> None:
    torch.save(as_uer(weights, old), folder / "model.bin-10000")
    config = {"emb_size": 8, "feedforward_size": 16, "hidden_size": 8, "hidden_act": "gelu", "heads_num": 2}
    config |= {"layers_num": 2, "dropout": 0.1, "embedding": ["word", "pos", "seg"], "encoder": "transformer"}
    (folder / "bert_config.json").write_text(json.dumps(config))
    assert_equal(convert(folder), model)


def test_a_decoder_of_its_own(folder: Path, weights: Tensors, capsys) -> None:
    weights["cls.predictions.decoder.weight"] = weights["cls.predictions.decoder.weight"] + 1
    torch.save(as_uer(weights, False), folder / "model.bin")
    loaded = BertForPreTraining.from_pretrained(convert(folder))
    assert torch.equal(loaded.cls.predictions.decoder.weight, weights["cls.predictions.decoder.weight"])
    assert torch.equal(loaded.cls.predictions.decoder.bias, weights["cls.predictions.bias"])
    assert torch.equal(loaded.bert.embeddings.word_embeddings.weight, weights["bert.embeddings.word_embeddings.weight"])
    assert "tie_word_embeddings=false" in capsys.readouterr().out


def test_pytorch_of_2019(folder: Path, model, weights: Tensors, capsys) -> None:
    """gamma and beta, DataParallel's prefix, a saved buffer, a task head."""
    old = {f"module.{name}": value for name, value in weights.items()}
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in old.items()
    }
    old |= {"module.bert.embeddings.position_ids": torch.arange(12)[None], "module.classifier.weight": torch.ones(2, 8)}
    torch.save(collections.OrderedDict(old), folder / "pytorch_model.bin")
    assert_equal(convert(folder), model)
    said = capsys.readouterr().out
    assert "left out: module.bert.embeddings.position_ids\n  left out: module.classifier.weight\n" in said


@pytest.mark.parametrize(
    ("kept", "architecture", "left_out"),
    [
        (("bert.",), "BertModel", []),
        (("bert.", "cls.predictions"), "BertForMaskedLM", ["bert.pooler.dense.bias", "bert.pooler.dense.weight"]),
        (("bert.", "cls.seq"), "BertForNextSentencePrediction", []),
    ],
)
def test_the_class_follows_the_heads(kept, architecture: str, left_out, folder: Path, weights: Tensors, capsys) -> None:
    part = {name: value for name, value in weights.items() if name.startswith(kept)}
    if architecture == "BertModel":
        part = {name.removeprefix("bert."): value for name, value in part.items()}
    torch.save(part, folder / "pytorch_model.bin")
    out = convert(folder, "vocab=none")
    assert json.loads((out / "config.json").read_text())["architectures"] == [architecture]
    loaded, report = getattr(transformers, architecture).from_pretrained(out, output_loading_info=True)
    assert not any(report.values())
    shared = {name: value for name, value in loaded.state_dict().items() if name in part}
    assert len(shared) == len(part) - len(left_out)
    assert all(torch.equal(value, part[name]) for name, value in shared.items())
    said = capsys.readouterr().out
    assert sorted(line[12:] for line in said.splitlines() if "left out" in line) == left_out
    assert f"the model is a {architecture}" in said


class RunsCode:
    def __reduce__(self) -> tuple:
        return os.system, (f"touch {os.environ['CONVERT_RAN']}",)


def test_a_pickle_that_runs_code_is_refused(folder: Path, weights: Tensors, capsys, monkeypatch) -> None:
    monkeypatch.setenv("CONVERT_RAN", str(folder.parent / "ran"))
    torch.save({"model": as_nvidia(weights), "data_loader": RunsCode()}, folder / "ckpt_1.pt")
    message = refused(capsys, folder)
    assert "to read it would run posix.system; nothing in it was run" in message
    assert not (folder.parent / "ran").exists()
    torch.load(folder / "ckpt_1.pt", weights_only=False)
    assert (folder.parent / "ran").exists()  # what a plain torch.load does with it


class PretrainingDataset(Dataset):
    def __init__(self) -> None:
        self.inputs = [torch.arange(4).numpy()]

    def __len__(self) -> int:
        return 1


PretrainingDataset.__module__, PretrainingDataset.__qualname__ = "__main__", "pretraining_dataset"


def test_the_data_loader_that_nvidia_pickled_is_discarded(folder: Path, model, weights, monkeypatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "pretraining_dataset", PretrainingDataset, raising=False)
    data = PretrainingDataset()
    loader = DataLoader(data, sampler=RandomSampler(data), batch_size=1)
    torch.save({"model": as_nvidia(weights), "data_loader": loader}, folder / "ckpt_1.pt")
    assert_equal(convert(folder), model)


def truncated(folder: Path, weights: Tensors) -> None:
    torch.save(as_nvidia(weights), folder / "ckpt_1.pt")
    whole = (folder / "ckpt_1.pt").read_bytes()
    (folder / "ckpt_1.pt").write_bytes(whole[: len(whole) // 2])


def lacking(*names: str):
    def make(folder: Path, weights: Tensors) -> None:
        torch.save({k: v for k, v in weights.items() if k not in names}, folder / "pytorch_model.bin")

    return make


def renamed(old: str, new: str):
    def make(folder: Path, weights: Tensors) -> None:
        torch.save({k.replace(old, new): v for k, v in weights.items()}, folder / "pytorch_model.bin")

    return make


def configured(**changes: object):
    def make(folder: Path, weights: Tensors) -> None:
        lacking()(folder, weights)
        (folder / "bert_config.json").write_text(json.dumps({**CONFIG, **changes}))

    return make


def a_pickle(folder: Path, weights: Tensors) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": RunsCode.__reduce__}))


def empty(folder: Path, weights: Tensors) -> None:
    (folder / "pytorch_model.bin").touch()


def with_a_tokenizer(folder: Path, weights: Tensors) -> None:
    lacking()(folder, weights)
    (folder / "tokenizer_config.json").write_text("{}")


def without(name: str):
    def make(folder: Path, weights: Tensors) -> None:
        lacking()(folder, weights)
        (folder / name).unlink()

    return make


def with_vocabulary(*tokens: str):
    def make(folder: Path, weights: Tensors) -> None:
        lacking()(folder, weights)
        (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")

    return make


def both(folder: Path, weights: Tensors) -> None:
    twice = {**weights, "module.cls.predictions.bias": weights["cls.predictions.bias"]}
    torch.save(twice, folder / "pytorch_model.bin")


def not_finite(folder: Path, weights: Tensors) -> None:
    weights["bert.pooler.dense.bias"][1] = float("nan")
    lacking()(folder, weights)


FAULTS = [
    (truncated, (), "ckpt_1.pt is truncated or no checkpoint of PyTorch"),
    (empty, (), "pytorch_model.bin is truncated or no checkpoint of PyTorch (it is empty)"),
    (a_pickle, (), "a pickle that holds more than tensors; nothing in it was run"),
    (with_a_tokenizer, ("lowercase=true",), "lowercase is true, but the tokenizer in"),
    (lacking("bert.pooler.dense.bias"), (), "lacks 1 of the 46 weights of BertForPreTraining: bert.pooler.dense.bias"),
    (lacking("cls.predictions.bias"), (), "lacks 1 of the 46 weights of BertForPreTraining: cls.predictions.bias"),
    (both, (), "'cls.predictions.bias' and 'module.cls.predictions.bias' are both the weight cls.predictions.bias"),
    (not_finite, (), "bert.pooler.dense.bias has values that are not finite"),
    (renamed("bert.encoder.layer", "roberta.encoder.layr"), (), "a checkpoint of RoBERTa (it has roberta."),
    (renamed("attention.self.query", "query_key_value"), (), "a checkpoint of Megatron-LM"),
    (renamed("bert.encoder.layer", "gru"), (), "no tensor that a BERT is known by"),
    (configured(num_hidden_layers=1), (), "says num_hidden_layers=1; give the configuration"),
    (configured(num_hidden_layers=3), (), "lacks 16 of the 62 weights"),
    (configured(intermediate_size=32), (), "intermediate.dense.weight has shape (16, 8)"),
    (configured(vocab_size=30522), (), "has shape (40, 8)"),
    (configured(num_attention_heads=3), (), "makes no BERT: The hidden size (8) is not a multiple"),
    (configured(hidden_size=None), (), "does not state hidden_size"),
    (configured(model_type="roberta"), (), "is of another architecture (roberta)"),
    (without("bert_config.json"), (), "no bert_config.json or config.json lies beside"),
    (without("vocab.txt"), (), "no vocab.txt or tokenizer.json lies beside"),
    (lacking(), ("vocab=nowhere.txt",), "vocab is 'nowhere.txt', which is no vocab.txt"),
    (lacking(), ("config=nowhere.json",), "config is 'nowhere.json', which is no file"),
    (with_vocabulary("a", "b"), (), "has no [PAD], [UNK], [CLS], [SEP], [MASK]"),
    (with_vocabulary(*VOCABULARY, "word1"), (), "'word1' occurs twice"),
    (with_vocabulary(*VOCABULARY, "more"), (), "has 41 tokens, the model has embeddings for 40"),
    (lacking(), ("moments=true",), "moments is true, but source has no optimizer state"),
]


@pytest.mark.parametrize(("make", "options", "message"), FAULTS, ids=[message[:50] for *_, message in FAULTS])
def test_a_fault_is_one_line_and_nothing_is_written(make, options, message: str, folder, weights, capsys) -> None:
    make(folder, weights)
    assert message in refused(capsys, folder, *options)


def test_the_source_and_what_is_there_are_kept(folder: Path, weights: Tensors, capsys) -> None:
    lacking()(folder, weights)
    source = folder / "pytorch_model.bin"
    assert "is the folder of source" in _line(capsys, f"source={source}", f"out_dir={folder}", "overwrite=true")
    out = convert(folder)
    (out / "README.md").write_text("mine")
    assert "exists; give another, or overwrite=true" in refused(capsys, folder)
    assert (out / "README.md").read_text() == "mine"
    convert(folder, "overwrite=true", "lowercase=false")
    assert "pytorch_model.bin" in (out / "README.md").read_text()
    assert AutoTokenizer.from_pretrained(out).tokenize("Word1") == ["[UNK]"]
    shutil.copyfile(source, folder / "second.bin")
    source.rename(folder / "first.bin")
    assert "holds 2 checkpoints (first.bin, second.bin)" in refused(capsys, folder, "overwrite=true")
    assert "which is not there; give a file of PyTorch" in _line(capsys, "source=nowhere", "out_dir=x")


def _line(capsys, *words: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main(list(words))
    return capsys.readouterr().err


def test_two_conversions_into_one_folder_do_not_write_at_once(folder: Path, weights: Tensors, capsys) -> None:
    lacking()(folder, weights)
    code = "import sys, pathlib; from bert_pretrain.files.directory_lock import lock_beside as lock\n"
    code += "held = lock(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", code, str(folder.parent / "out")]
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert f"is in use by process {other.pid}" in refused(capsys, folder)
        other.communicate()
    convert(folder)


def test_the_case_is_read_from_the_vocabulary() -> None:
    assert is_lowercase(["[CLS]", "[MASK]", "the", "##s", "é"])
    assert not is_lowercase(["[CLS]", "the", "The", "##S"])
    assert is_lowercase(["Ａ", *(f"字{number}" for number in range(200))])  # as in Google's Chinese vocabulary
