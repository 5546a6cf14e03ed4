"""``model=from_init``: what is null comes from the run, or from the model that ``init_from`` names."""

import json
from pathlib import Path

import pytest

from bert_pretrain.config import PretrainConfig, resolved_yaml
from bert_pretrain.errors import ConfigError
from bert_pretrain.hub.shape import resolve_if_needed, resolve_model
from bert_pretrain.options.config_loading import load_config
from bert_pretrain.same_run import check_run_dir

SHAPE = {
    "model_type": "bert", "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40,
    "vocab_size": 128, "max_position_embeddings": 96, "hidden_act": "gelu_new", "hidden_dropout_prob": 0.2,
    "attention_probs_dropout_prob": 0.3, "initializer_range": 0.01, "layer_norm_eps": 1e-5, "type_vocab_size": 3,
    "pad_token_id": 1,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/config.json").write_text(json.dumps(SHAPE))
    return tmp_path / "source"


def resolved(folder: Path, *options: str, model: str = "from_init") -> PretrainConfig:
    words = ["recipe=demo", f"model={model}", f"init_from={folder}", f"run_dir={folder.parent / 'run'}"]
    words += [f"data.dir={folder.parent / 'data'}", *options]
    return resolve_model(load_config("pretrain", words, PretrainConfig))


def test_everything_from_the_source(folder: Path) -> None:
    model = resolved(folder).model
    assert {name: getattr(model, name) for name in SHAPE if name != "model_type"} == {
        name: value for name, value in SHAPE.items() if name != "model_type"
    }


def test_dropout_may_be_stated(folder: Path) -> None:
    model = resolved(folder, "model.hidden_dropout_prob=0.0").model
    assert (model.hidden_dropout_prob, model.attention_probs_dropout_prob) == (0.0, 0.3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.hidden_size=128"], r"model\.hidden_size is 128, but init_from .* has 24; leave it out \(model=from_"),
        (["model.num_hidden_layers=2"], r"model\.num_hidden_layers is 2, but init_from .* has 3"),
        (["model.layer_norm_eps=1e-12"], r"model\.layer_norm_eps is 1e-12, but init_from .* has 1e-05"),
        (["model.max_position_embeddings=128"], "is 128, but init_from .* has 96; give init_positions=interpolate or"),
        (["data.sequence_length=128"], r"data\.sequence_length is 128; allowed: up to .*\(96\)"),
        (["model.max_position_embeddings=32"], r"data\.sequence_length is 64; allowed: up to .*\(32\)"),
        (["init_from=null"], r"model\.hidden_size is null, which means as in the model of init_from"),
        (["init_positions=stretch"], "init_positions is 'stretch'; allowed: interpolate, repeat, null"),
    ],
)
def test_what_differs_is_named(folder: Path, options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolved(folder, *options)


def test_more_positions_on_request(folder: Path) -> None:
    options = ("model.max_position_embeddings=128", "init_positions=repeat", "data.sequence_length=128")
    assert resolved(folder, *options).model.max_position_embeddings == 128


def test_an_activation_that_is_not_computed_is_named(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**SHAPE, "hidden_act": "quick_gelu"}))
    with pytest.raises(ConfigError, match=r"model\.hidden_act is 'quick_gelu'; allowed: gelu, "):
        resolved(folder)


def tokens(path: Path, words: list[str]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "vocab.txt").write_text("\n".join(words) + "\n")


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ([f"w{n}" for n in range(100)], 128),  # the same tokenizer: the padded size
        ([f"w{n}" for n in range(126)], 128),  # a few more
        ([f"w{n}" for n in range(130)], 192),  # more than there is room for: the next multiple of 64
        ([f"n{n}" for n in range(9)] + ["w0"], 64),  # another one
    ],
)
def test_the_shards_tokenizer_decides_the_vocabulary(folder: Path, words: list[str], size: int) -> None:
    tokens(folder, [f"w{n}" for n in range(100)])
    tokens(folder.parent / "data/tokenizer", words)
    assert resolved(folder).model.vocab_size == size


def test_a_resumed_run_needs_no_source(folder: Path) -> None:
    config = resolved(folder)
    run_dir = Path(config.run_dir)
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(resolved_yaml(config))
    (folder / "config.json").unlink()
    again = resolved(folder)
    assert again.model == config.model
    check_run_dir(again)


def test_a_run_whose_shape_was_stated_is_resumed(folder: Path) -> None:
    """What it did not state, such as layer_norm_eps, came from the source."""
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 512}
    values = {**SHAPE, **sizes, "hidden_act": "gelu", "vocab_size": 4096}
    (folder / "config.json").write_text(json.dumps(values))
    config = resolved(folder, "model.max_position_embeddings=96", model="tiny")
    assert config.model.layer_norm_eps == 1e-5
    Path(config.run_dir).mkdir()
    (Path(config.run_dir) / "config.yaml").write_text(resolved_yaml(config))
    words = [f"run_dir={config.run_dir}", f"data.dir={config.data.dir}", "model.max_position_embeddings=96"]
    again = load_config("pretrain", ["recipe=demo", f"init_from={folder}", *words], PretrainConfig)
    check_run_dir(resolve_if_needed(again))
    with pytest.raises(ConfigError, match="belongs to another run"):
        check_run_dir(again)


def test_without_a_run_or_nulls_the_source_is_not_looked_at(folder: Path) -> None:
    words = ["recipe=demo", "init_from=/not/here", f"run_dir={folder.parent / 'run'}"]
    config = load_config("pretrain", words, PretrainConfig)
    assert resolve_if_needed(config) is config


def test_a_run_is_a_source_too(folder: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "before/checkpoints/step_00000002/model"
    checkpoint.mkdir(parents=True)
    (folder / "config.json").rename(checkpoint / "config.json")
    for name in ("before", "before/checkpoints/step_00000002"):
        if name != "before":
            (tmp_path / name / "progress.json").touch()
        assert resolved(tmp_path / name, f"data.dir={tmp_path / 'none'}").model.hidden_size == 24
