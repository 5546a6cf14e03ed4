"""From a folder of ``transformers`` to a run, its export and the next run."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM, BertForPreTraining

from bert_pretrain.checkpoint.tokenizer_files import set_max_length
from bert_pretrain.data.shard_directory import write_manifest
from bert_pretrain.data.shards import write_shard
from bert_pretrain.errors import ConfigError
from bert_pretrain.hub.export import check_loads
from bert_pretrain.training.metrics import read_rows
from tests.conftest import TEST_RECIPE, VOCAB_SIZE, header, random_arrays, run_module, succeed

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(VOCAB_SIZE - 5))]
OPTIONS = (*(word for word in TEST_RECIPE if not word.startswith("model.")), "model=from_init", "data.block_size=8")


def tokenizer(folder: Path, words: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "model_max_length": 512, "about": "ours"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder / "saved")
    (folder / "saved/tokenizer.json").rename(folder / "tokenizer.json")
    shutil.rmtree(folder / "saved")
    return folder


def shards(directory: Path, words: list[str]) -> Path:
    """Shards for ``words``, with their tokenizer."""
    tokenizer(directory / "tokenizer", words)
    digest = hashlib.sha256((directory / "tokenizer/vocab.txt").read_bytes()).hexdigest()
    rng, rows = np.random.default_rng(3), []
    for split, samples in (("train", 60), ("heldout", 20)):
        described = header(split, vocab_hash=digest, vocab_size=len(words))
        rows.append(write_shard(directory / f"{split}_00000.hdf5", random_arrays(rng, samples), described))
    write_manifest(directory, {"shards": rows})
    return directory


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked-language model with a padded vocabulary, unlike BERT's defaults where that is allowed."""
    folder = tokenizer(tmp_path_factory.mktemp("origin"), WORDS)
    torch.manual_seed(3)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    more = {"layer_norm_eps": 1e-6, "max_position_embeddings": 24, "type_vocab_size": 3, "language": "en"}
    BertForMaskedLM(BertConfig(vocab_size=128, **shape, **more)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards(tmp_path_factory.mktemp("data"), WORDS)


def pretrained(run_dir: Path, data: Path, init_from: Path, *options: str, processes: int = 0) -> str:
    words = [*OPTIONS, f"data.dir={data}", f"run_dir={run_dir}", f"init_from={init_from}", *options]
    return succeed("bert_pretrain.pretrain", *words, processes=processes)


def evaluations(run_dir: Path) -> dict[int, dict]:
    rows = [row for row in read_rows(run_dir / "metrics.jsonl") if "eval_loss" in row]
    assert len({row["step"] for row in rows}) == len(rows)
    return {row["step"]: row for row in rows}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, origin: Path, data: Path) -> tuple[Path, str]:
    """The first half of a run from ``origin``, which is deleted; then the other half."""
    folder = tmp_path_factory.mktemp("run")
    moved = shutil.copytree(origin, folder / "moved")
    words = ["model.hidden_dropout_prob=0.1"]
    out = pretrained(folder / "run", data, moved, *words)
    shutil.copytree(folder / "run", folder / "cut")
    shutil.rmtree(moved)
    shutil.rmtree(folder / "cut/checkpoints/step_00000006")
    again = pretrained(folder / "cut", data, moved, *words)
    assert "resuming from" in again
    assert [*evaluations(folder / "cut")] == [0, 3, 6]
    ends = [folder / name / "checkpoints/step_00000006/model/model.safetensors" for name in ("run", "cut")]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    return folder / "run", out


def test_a_folder_is_no_base_model_on_the_hub(run: tuple[Path, str]) -> None:
    assert json.loads((run[0] / "sessions.jsonl").read_text().splitlines()[0])["base_model"] is None


def test_what_is_random_is_said(run: tuple[Path, str]) -> None:
    line = next(line for line in run[1].splitlines() if "start from random weights" in line)
    assert line.endswith(
        "bert.pooler.dense.weight, bert.pooler.dense.bias, cls.seq_relationship.weight, cls.seq_relationship.bias"
    )
    assert "moments: reset (it is no checkpoint of this program)" in run[1]


def test_the_loss_before_the_first_step_is_that_of_the_source(run: tuple[Path, str], origin: Path, data: Path) -> None:
    import h5py

    model = AutoModelForMaskedLM.from_pretrained(origin).eval()
    with h5py.File(data / "heldout_00000.hdf5") as file:
        ids, mask, segments, places, labels = (
            torch.from_numpy(file[name][:].astype(np.int64))
            for name in ("input_ids", "input_mask", "segment_ids", "masked_lm_positions", "masked_lm_ids")
        )
    wanted = torch.full_like(ids, -100).scatter(1, places, torch.where(places > 0, labels, -100))
    out = model(input_ids=ids, attention_mask=mask, token_type_ids=segments, labels=wanted)
    assert evaluations(run[0])[0]["eval_mlm_loss"] == pytest.approx(out.loss.item(), abs=1e-5)


def test_export_and_back(run: tuple[Path, str], origin: Path, data: Path, tmp_path: Path) -> None:
    export = tmp_path / "export"
    assert run_module("bert_pretrain.hub.export", f"run_dir={run[0]}", f"out_dir={export}").returncode == 0
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (origin, export))
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed <= {"architectures", "hidden_dropout_prob"}
    assert (export / "tokenizer.json").read_bytes() == (data / "tokenizer/tokenizer.json").read_bytes()
    found = json.loads((export / "tokenizer_config.json").read_text())
    assert found == {**json.loads((origin / "tokenizer_config.json").read_text()), "model_max_length": 24}
    for number, source in enumerate((export, run[0], run[0] / "checkpoints/step_00000006")):
        out = pretrained(tmp_path / f"next_{number}", data, source, "schedule.total_steps=1")
        assert "start from random weights" not in out
        assert f"moments: {'keep' if number else 'reset'}" in out
        first, last = evaluations(tmp_path / f"next_{number}")[0], evaluations(run[0])[6]
        assert {**first, "step": 6} == last


def test_without_next_sentences(run: tuple[Path, str], origin: Path, data: Path, tmp_path: Path) -> None:
    options = ("model.next_sentence=false", "schedule.total_steps=1")
    out = pretrained(tmp_path / "from_origin", data, origin, *options)
    assert "start from random weights" not in out
    assert "not used" not in out
    out = pretrained(tmp_path / "from_run", data, run[0], *options)
    (line,) = [
        line for line in out.splitlines() if line.endswith("cls.seq_relationship.bias, cls.seq_relationship.weight")
    ]
    assert "but not used: bert.pooler.dense.bias, bert.pooler.dense.weight, " in line
    assert "moments: reset (in" in out
    first, last = evaluations(tmp_path / "from_run")[0], evaluations(run[0])[6]
    assert first["eval_mlm_loss"] == last["eval_mlm_loss"]


def test_two_ranks_with_sharded_moments(run: tuple[Path, str], data: Path, tmp_path: Path) -> None:
    options = ("optimizer.sharded=true", "schedule.total_steps=2", "init_moments=restart", "data.masking=dynamic")
    pretrained(tmp_path / "run", data, run[0], *options, processes=2)
    first, last = evaluations(tmp_path / "run")[0], evaluations(run[0])[6]
    assert first["eval_mlm_loss"] == pytest.approx(last["eval_mlm_loss"], abs=1e-6)


def test_new_words_and_more_positions(run: tuple[Path, str], tmp_path: Path) -> None:
    data = shards(tmp_path / "data", [*WORDS, *(f"x{number}" for number in range(40)), "w1w2"])
    options = ("model.max_position_embeddings=32", "init_positions=interpolate", "schedule.total_steps=1")
    out = pretrained(tmp_path / "run", data, run[0], *options)
    assert "vocabulary: 192 entries, 128 in" in out
    assert "position embeddings: 24 became 32, init_positions=interpolate" in out
    assert "moments: reset (vocabulary: 192 entries" in out
    weights = load_file(tmp_path / "run/checkpoints/step_00000001/model/model.safetensors")
    assert weights["bert.embeddings.word_embeddings.weight"].shape == (192, 16)


@pytest.mark.parametrize(
    ("options", "mentions"),
    [
        (("init_moments=keep",), "init_moments is 'keep', but init_from"),
        (("model.vocab_size=64",), "model.vocab_size is 64"),
        (("model.hidden_size=32",), "model.hidden_size is 32, but init_from"),
        (("model.max_position_embeddings=8",), "data.sequence_length is 16; allowed: up to"),
    ],
)
def test_mistakes(origin: Path, data: Path, tmp_path: Path, options: tuple[str, ...], mentions: str) -> None:
    words = [*OPTIONS, f"data.dir={data}", f"run_dir={tmp_path / 'run'}", f"init_from={origin}", *options]
    done = run_module("bert_pretrain.pretrain", *words)
    assert done.returncode == 2
    assert mentions in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file()]


def test_plan_and_doctor_know_the_shape(origin: Path, data: Path, tmp_path: Path) -> None:
    words = [*OPTIONS, f"data.dir={data}", f"run_dir={tmp_path / 'run'}", f"init_from={origin}"]
    for module in ("bert_pretrain.plan", "bert_pretrain.doctor"):
        done = run_module(module, *words)
        assert done.returncode == 0, done.stdout + done.stderr
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file()]


def test_the_export_check_finds_a_tokenizer_that_does_not_cut(origin: Path, tmp_path: Path) -> None:
    shutil.copytree(origin, tmp_path / "model")
    BertForPreTraining.from_pretrained(origin).save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match="cuts at 512 tokens, not at 24"):
        check_loads(tmp_path / "model")
    set_max_length(tmp_path / "model", 24)
    check_loads(tmp_path / "model")
