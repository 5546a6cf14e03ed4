"""Every kind of BERT folder, against ``transformers``; and what is refused."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import BertConfig

from bert_pretrain.errors import ConfigError
from bert_pretrain.hub.from_pretrained import load_pretrained, read_weights
from bert_pretrain.hub.source import Source, find_source
from bert_pretrain.model.bert import PretrainingModel, build_model
from bert_pretrain.model.options import ModelConfig, SpeedConfig

SHAPE: dict[str, Any] = {
    "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
    "max_position_embeddings": 16, "vocab_size": 20, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0, "initializer_range": 0.5,
}  # fmt: skip
SLOW = SpeedConfig(
    group_by_length=False, packing=False, last_layer_rows=False, fused_qkv=False, fast_dropout=False, fused_loss=False,
    pad_vocabulary=False, compile=False, cuda_graphs=False,
)  # fmt: skip
IDS = torch.tensor([[2, 7, 11, 3], [2, 19, 4, 3]])


def saved(folder: Path, kind: str, **entries: Any) -> Any:
    """A random model of ``kind``, saved in ``folder`` by ``transformers``."""
    torch.manual_seed(5)
    model = getattr(transformers, kind)(BertConfig(**{**SHAPE, "attn_implementation": "eager", **entries})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.5)
    model.save_pretrained(folder)
    return model


def new_model(**changes: Any) -> PretrainingModel:
    return build_model(
        ModelConfig(**{**SHAPE, "attention": "eager", "next_sentence": True, **changes}), SLOW, 1, torch.device("cpu")
    )


def loaded(folder: Path, **changes: Any) -> tuple[PretrainingModel, list[str], Source]:
    lines: list[str] = []
    model, source = new_model(**changes), find_source(str(folder), "init_from", lines.append)
    load_pretrained(model, source, folder, lines.append)
    return model, lines, source


KINDS = {
    "BertModel": ("seq_relationship", ""),
    "BertForMaskedLM": ("bert.pooler.dense.weight, bert.pooler.dense.bias, cls.seq_relationship", ""),
    "BertForPreTraining": ("", ""),
    "BertForSequenceClassification": ("cls.predictions.transform", "classifier.bias, classifier.weight"),
    "BertForQuestionAnswering": ("bert.pooler.dense", "qa_outputs.bias, qa_outputs.weight"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_heads(tmp_path: Path, kind: str) -> None:
    theirs = saved(tmp_path, kind)
    ours, lines, _ = loaded(tmp_path)
    body = theirs if kind == "BertModel" else theirs.bert
    assert torch.equal(ours.bert.bert(IDS).last_hidden_state, body(IDS).last_hidden_state)
    lacking, left = KINDS[kind]
    assert any("start from random weights" in line and lacking in line for line in lines) == bool(lacking)
    assert any(line.endswith(f"not used: {left}") for line in lines) == bool(left)
    random, state = new_model().bert.state_dict(), ours.bert.state_dict()
    for name in state:  # what is missing is as the seed says, and nothing else is
        missing = any(name in line for line in lines)
        if "decoder" not in name:
            assert torch.equal(state[name], random[name]) == missing or name == "cls.predictions.bias", name


def test_the_logits_are_those_of_transformers(tmp_path: Path) -> None:
    theirs = saved(tmp_path, "BertForPreTraining", layer_norm_eps=1e-3, hidden_act="gelu_new", pad_token_id=7)
    ours, lines, _ = loaded(tmp_path, layer_norm_eps=1e-3, hidden_act="gelu_new", pad_token_id=7)
    assert lines == []
    for mine, other in zip(ours.bert(IDS)[:2], theirs(IDS)[:2], strict=True):
        assert torch.equal(mine, other)
    ours.bert.save_pretrained(tmp_path / "again")
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in (".", "again"))
    assert before == after


def as_bin(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def as_shards(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    names = {name: f"pytorch_model-0000{number % 2}.bin" for number, name in enumerate(weights)}
    for file in set(names.values()):
        torch.save({name: weights[name] for name in weights if names[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    (folder / "model.safetensors").unlink()


def as_safe_shards(folder: Path) -> None:
    model = transformers.BertForPreTraining.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="2KB")
    assert (folder / "model.safetensors.index.json").exists()


def with_old_names(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, value in weights.items():
        ending = next((ending for ending in old if name.endswith(ending)), None)
        renamed[name.removesuffix(ending) + old[ending] if ending else name] = value
    renamed["bert.embeddings.position_ids"] = torch.arange(16)[None]
    save_file(renamed, folder / "model.safetensors")


def in_half_precision(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({name: value.half() for name, value in weights.items()}, folder / "model.safetensors")


def as_sentence_transformer(folder: Path) -> None:
    (folder / "0_Transformer").mkdir()
    for path in folder.glob("*.*"):
        path.rename(folder / "0_Transformer" / path.name)
    (folder / "config.json").unlink(missing_ok=True)


@pytest.mark.parametrize("change", [as_bin, as_shards, as_safe_shards, with_old_names, as_sentence_transformer])
def test_kinds_of_files(tmp_path: Path, change: Any) -> None:
    theirs = saved(tmp_path, "BertForPreTraining")
    change(tmp_path)
    ours, lines, source = loaded(tmp_path)
    assert lines == []
    assert torch.equal(ours.bert(IDS)[0], theirs(IDS)[0])
    assert all(name in theirs.state_dict() for name in read_weights(source))


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    theirs = saved(tmp_path, "BertForPreTraining")
    in_half_precision(tmp_path)
    weight = loaded(tmp_path)[0].bert.bert.encoder.layer[0].output.dense.weight
    assert torch.equal(weight, theirs.bert.encoder.layer[0].output.dense.weight.half().float())


def test_an_untied_decoder_is_named(tmp_path: Path) -> None:
    saved(tmp_path, "BertForPreTraining")
    weights = load_file(tmp_path / "model.safetensors")
    weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"] + 1
    save_file(weights, tmp_path / "model.safetensors")
    assert loaded(tmp_path)[1][-1].endswith("not used: cls.predictions.decoder.weight")


def test_a_missing_encoder_weight_is_an_error(tmp_path: Path) -> None:
    saved(tmp_path, "BertForPreTraining")
    weights = load_file(tmp_path / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.bias"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"lacks weights of the encoder, such as bert\.encoder\.layer\.1\.output"):
        loaded(tmp_path)


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["MARKER"],)


def test_a_pickle_with_code_is_not_run(tmp_path: Path, monkeypatch) -> None:
    saved(tmp_path, "BertForPreTraining")
    monkeypatch.setenv("MARKER", str(tmp_path / "ran"))
    (tmp_path / "model.safetensors").unlink()
    torch.save({"a": Code()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="nothing of it was executed") as refused:
        loaded(tmp_path)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "ran").exists()


def entry(folder: Path, **entries: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def only_tensorflow(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "tf_model.h5")


def without_a_shard(folder: Path) -> None:
    as_shards(folder)
    (folder / "pytorch_model-00001.bin").unlink()


def list_of_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save([torch.zeros(2)], folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: entry(folder, model_type="roberta"), r"another architecture \(roberta\)"),
        (lambda folder: entry(folder, model_type="gpt2"), r"another architecture \(gpt2\)"),
        (
            lambda folder: entry(folder, position_embedding_type="relative_key"),
            "position_embedding_type='relative_key'",
        ),
        (lambda folder: entry(folder, is_decoder=True), "is_decoder=True"),
        (lambda folder: entry(folder, add_cross_attention=True), "add_cross_attention=True"),
        (lambda folder: entry(folder, tie_word_embeddings=False), "tie_word_embeddings=False"),
        (lambda folder: entry(folder, auto_map={"AutoModel": "x.Y"}), "auto_map="),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json cannot be read"),
        (lambda folder: (folder / "config.json").unlink(), r"has no config\.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "a folder without weights"),
        (cut, r"model\.safetensors cannot be read"),
        (only_tensorflow, r"tf_model\.h5 only; .*bert-pretrain convert"),
        (without_a_shard, r"lacks pytorch_model-00001\.bin"),
        (list_of_weights, "holds no weights by name"),
    ],
)
def test_refused(tmp_path: Path, change: Any, message: str) -> None:
    saved(tmp_path, "BertForPreTraining")
    change(tmp_path)
    with pytest.raises(ConfigError, match=message) as refused:
        loaded(tmp_path)
    assert str(refused.value).startswith(f"init_from is {str(tmp_path)!r}")
    assert "\n" not in str(refused.value)
