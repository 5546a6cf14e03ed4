"""``bert-pretrain convert`` on what TensorFlow wrote: recorded for every run, anew where tensorflow is installed.

The fixtures hold variables and logits of tiny BERTs as TensorFlow saved and computed them; scripts/prove_convert.py
made them and scripts/prove_convert.sh runs what skips here.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

from bert_pretrain.hub.convert import tensorflow_file
from bert_pretrain.hub.convert.command import main
from scripts.prove_convert import CONFIG, FIXTURES, GARDEN, OPTIONS, VOCABULARY, differences
from tests.conftest import ROOT

needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="needs tensorflow: scripts/prove_convert.sh"
)
needs_no_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="tensorflow is installed"
)
RECORDED = sorted(path.stem for path in FIXTURES.glob("*.safetensors"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.mkdir()
    (path / "bert_config.json").write_text(json.dumps(CONFIG))
    (path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    for name in ("bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"):
        (path / name).touch()
    return path


def recorded(kind: str) -> dict:
    """The variables of a fixture, as ``read_variables`` gives them."""
    arrays = load_torch(FIXTURES / f"{kind}.safetensors")
    return {name.removeprefix("variable:"): value for name, value in arrays.items() if name.startswith("variable:")}


@pytest.fixture
def read(monkeypatch):
    """Stand in for the process with tensorflow: give it the variables that it is to have read."""

    def put(variables: dict) -> None:
        monkeypatch.setattr(tensorflow_file, "read_variables", lambda prefix: (variables, []))

    return put


def test_every_kind_is_recorded() -> None:
    assert {"google", "google_bare", *GARDEN} == set(RECORDED)


@pytest.mark.parametrize("kind", RECORDED)
def test_logits_are_those_that_tensorflow_computed(kind: str, folder: Path, read, capsys) -> None:
    read(recorded(kind))
    main([f"source={folder}", f"out_dir={folder}-out"])
    expected = load_file(FIXTURES / f"{kind}.safetensors")
    expected = {key.removeprefix("expected:"): value for key, value in expected.items() if key.startswith("expected:")}
    found = differences(Path(f"{folder}-out"), expected)
    assert len(found) == 2
    assert max(found.values()) < 1e-5, found
    left_out = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    unused = {
        "google": 93,
        "garden_pretrainer_v2": 2,
    }  # 46 variables with two slots and a counter; the encoder's pooler
    assert len(left_out) == unused.get(kind, 0)


FAULTS = [
    ("google", {"bert/encoder/layer_1/output/dense/kernel": None}, {}, "lacks 1 of the 46 weights"),
    ("google", {"bert/embeddings/LayerNorm/gamma": None, "cls/predictions/output_bias": None}, {}, "lacks 2 of the 46"),
    ("garden_encoder", {}, {"num_attention_heads": 4}, "source has 2 attention heads"),
    ("garden_encoder", {}, {"num_hidden_layers": 1}, "says num_hidden_layers=1"),
    ("google", {}, {"max_position_embeddings": 512}, "bert/embeddings/position_embeddings has shape (12, 8)"),
]


@pytest.mark.parametrize(("kind", "changes", "config", "message"), FAULTS, ids=[message for *_, message in FAULTS])
def test_faults(kind: str, changes: dict, config: dict, message: str, folder: Path, read, capsys) -> None:
    read({name: value for name, value in recorded(kind).items() if name not in changes})
    (folder / "bert_config.json").write_text(json.dumps({**CONFIG, **config}))
    assert message in one_line(capsys, f"source={folder}/bert_model.ckpt", f"out_dir={folder}-out")
    assert not Path(f"{folder}-out").exists()


def one_line(capsys, *words: str) -> str:
    with pytest.raises(SystemExit, match="2"):
        main(list(words))
    out, error = capsys.readouterr()
    assert out == ""
    assert len(error.splitlines()) == 1
    return error


def test_a_file_of_the_pair_is_missing(folder: Path, capsys) -> None:
    (folder / "bert_model.ckpt.index").rename(folder / "kept")
    assert "there is no bert_model.ckpt.index" in one_line(capsys, f"source={folder}/bert_model.ckpt", "out_dir=x")
    (folder / "kept").rename(folder / "bert_model.ckpt.index")
    (folder / "bert_model.ckpt.data-00000-of-00001").unlink()
    assert "there is no bert_model.ckpt.data-*" in one_line(capsys, f"source={folder}", "out_dir=x")


@needs_no_tensorflow
def test_without_tensorflow_the_extra_is_named(folder: Path, capsys) -> None:
    message = one_line(capsys, f"source={folder}", f"out_dir={folder}-out")
    assert message.endswith("pip install 'bert-pretrain[convert]'\n")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints that tensorflow, and the model garden where it is installed, write now."""
    folder = tmp_path_factory.mktemp("tensorflow")
    garden = GARDEN[:2] if importlib.util.find_spec("official") else ()
    words = [sys.executable, "scripts/prove_convert.py", "write", folder, "google", "google_tanh", *garden]
    subprocess.run(words, cwd=ROOT, check=True, env={**os.environ, "TF_USE_LEGACY_KERAS": "1"})
    return folder


@needs_tensorflow
def test_what_tensorflow_writes_now(written: Path, tmp_path: Path) -> None:
    kinds = [path for path in sorted(written.iterdir()) if path.is_dir()]
    assert len(kinds) >= 2
    for source in kinds:
        main([f"source={source}", f"out_dir={tmp_path / source.name}", *OPTIONS.get(source.name, ())])
        expected = load_file(source / "expected" / "expected.safetensors")
        assert max(differences(tmp_path / source.name, expected).values()) < 1e-5, source


@needs_tensorflow
@pytest.mark.parametrize("suffix", ["index", "data-00000-of-00001"])
def test_a_truncated_checkpoint(suffix: str, written: Path, tmp_path: Path, capsys) -> None:
    source = shutil.copytree(written / "google", tmp_path / "google")
    file = source / f"bert_model.ckpt.{suffix}"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "cannot be read by tensorflow" in one_line(capsys, f"source={source}", f"out_dir={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()
