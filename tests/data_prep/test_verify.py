"""Verify accepts correct shards, ours and legacy, and reports every injected fault."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from bert_pretrain.data.masking import mask_samples
from bert_pretrain.data.masking_rule import MaskingRule
from bert_pretrain.data.shard_directory import write_manifest
from bert_pretrain.data.shards import SHARD_FIELDS, ShardHeader, write_shard
from bert_pretrain.errors import ConfigError
from data_prep import verify
from data_prep.engine.shard_statistics import Totals, check_shares
from data_prep.samples.tokenizer import Letters, Vocabulary, train_vocabulary, write_tokenizer

LENGTH, MOST, SAMPLES = 32, 5, 600


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnop"), rng.integers(2, 7))) for _ in range(300)]
    return train_vocabulary(lambda: [" ".join(words)] * 3, 300, Letters(True))


def make_arrays(vocabulary: Vocabulary, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    size = len(vocabulary.tokens)
    special = {token: vocabulary.tokens.index(token) for token in ("[CLS]", "[SEP]")}
    lengths = rng.integers(10, LENGTH + 1, SAMPLES)
    middle = rng.integers(3, lengths - 3)
    columns, rows = np.arange(LENGTH), np.arange(SAMPLES)
    ids = rng.integers(5, size, (SAMPLES, LENGTH))
    ids[:, 0], ids[rows, middle], ids[rows, lengths - 1] = special["[CLS]"], special["[SEP]"], special["[SEP]"]
    mask = columns < lengths[:, None]
    rule = MaskingRule.of_vocabulary(vocabulary.tokens, 0.15, MOST, False)
    masked, positions, labels = mask_samples(ids * mask, lengths, rule, 1, 0, rows)
    return {
        "input_ids": masked,
        "input_mask": mask.astype(int),
        "segment_ids": ((columns > middle[:, None]) & mask).astype(int),
        "masked_lm_positions": positions.astype(int),
        "masked_lm_ids": labels,
        "next_sentence_labels": rng.integers(0, 2, SAMPLES),
    }


def write_directory(folder: Path, vocabulary: Vocabulary, arrays: dict[str, np.ndarray]) -> None:
    folder.mkdir(exist_ok=True)
    header = ShardHeader(
        LENGTH, MOST, len(vocabulary.tokens), vocabulary.vocab_hash, vocabulary.tokenizer_hash, 0.15, False, 0.1, 1, 1,
        "train",
    )  # fmt: skip
    row = write_shard(folder / "train_00000.hdf5", arrays, header)
    write_manifest(folder, {"shards": [row]})
    write_tokenizer(vocabulary, folder / "tokenizer")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def call(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["verify", *options])
        try:
            verify.main()
        except SystemExit as end:
            return f"{end.code}: {capsys.readouterr().err.strip()}"
        return capsys.readouterr().out

    return call


def test_correct_shards(tmp_path: Path, vocabulary: Vocabulary, run: Callable[..., str]) -> None:
    write_directory(tmp_path, vocabulary, make_arrays(vocabulary))
    printed = run(f"dir={tmp_path}", "samples=2")
    assert "no faults found" in printed
    assert f"samples                 {SAMPLES}" in printed
    assert printed.count("[CLS]") == 2
    assert "{[MASK]|" in printed


def test_legacy(tmp_path: Path, vocabulary: Vocabulary, run: Callable[..., str]) -> None:
    arrays = make_arrays(vocabulary)
    with h5py.File(tmp_path / "wiki_training_0.hdf5", "w") as file:
        for name in SHARD_FIELDS:
            file.create_dataset(name, data=arrays[name].astype("i4"), compression="gzip")
    printed = run(f"dir={tmp_path}")
    assert "1 (1 legacy)" in printed
    assert "no faults found" in printed
    write_tokenizer(vocabulary, tmp_path / "given")
    assert "{[MASK]|" in run(f"dir={tmp_path}", f"vocab={tmp_path / 'given' / 'vocab.txt'}")


def change(arrays: dict, field: str, row: int, column: int, value: int) -> None:
    arrays[field][row, column] = value


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda a: change(a, "input_mask", 3, 1, 0), "input_mask is not ones followed by zeros"),
        (lambda a: change(a, "segment_ids", 3, 0, 1), "segment_ids is not"),
        (lambda a: change(a, "segment_ids", 3, -1, 1), "segment_ids is not"),
        (lambda a: change(a, "input_ids", int(np.argmin(a["input_mask"][:, -1])), -1, 9), "not 0 in the padding"),
        (lambda a: change(a, "masked_lm_positions", 3, 0, 31), "ascending|outside"),
        (lambda a: change(a, "masked_lm_positions", 3, 0, 0), "ascending"),
        (lambda a: change(a, "masked_lm_ids", int(np.argmin(a["masked_lm_positions"][:, -1])), -1, 7), "0-padded"),
        (lambda a: change(a, "next_sentence_labels", 3, ..., 2), "next_sentence_labels holds 2"),
        (lambda a: change(a, "input_ids", 3, 0, 8), r"no \[CLS\] at the start"),
        (lambda a: change(a, "input_ids", 3, int(a["input_mask"][3].sum()) - 1, 8), r"no \[SEP\] at the end"),
        (lambda a: change(a, "masked_lm_ids", 3, 0, 1), "a special token was masked"),
        (
            lambda a: change(a, "input_ids", 3, int(a["masked_lm_positions"][3, 0]), 0),
            "a special token is at a masked position",
        ),
        (lambda a: change(a, "input_ids", 3, 4, 300), "holds 300, but the model takes 0 to 299"),
        (lambda a: a["input_ids"].__setitem__(a["input_ids"] == 4, 0), "special token is at|masked positions hold"),
        (lambda a: [a[f].__setitem__((slice(None), slice(1, None)), 0) for f in MASKS], "were expected"),
    ],
)
def test_faults(tmp_path: Path, vocabulary: Vocabulary, run: Callable[..., str], fault: Callable, message: str) -> None:
    arrays = make_arrays(vocabulary)
    fault(arrays)
    write_directory(tmp_path, vocabulary, arrays)
    printed = run(f"dir={tmp_path}")
    assert printed.startswith("2: error: ")
    assert len(printed.splitlines()) == 1
    assert any(part in printed.replace("\\", "") for part in message.replace("\\", "").split("|"))


MASKS = ("masked_lm_positions", "masked_lm_ids")


@pytest.mark.parametrize(
    "what", ["manifest", "tokenizer", "truncated", "missing", "empty", "no directory", "missing dir"]
)
def test_directories(tmp_path: Path, vocabulary: Vocabulary, run: Callable[..., str], what: str) -> None:
    write_directory(tmp_path, vocabulary, make_arrays(vocabulary))
    shard, directory = tmp_path / "train_00000.hdf5", tmp_path
    if what == "manifest":
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        manifest["shards"][0]["checksum"] = "0"
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    elif what == "tokenizer":
        other = train_vocabulary(lambda: ["some other text of letters"] * 2, 60, Letters(True))
        write_tokenizer(other, tmp_path / "tokenizer")
    elif what == "truncated":
        shard.write_bytes(shard.read_bytes()[:5000])
    elif what == "missing":
        shard.unlink()
    elif what == "empty":
        directory = tmp_path / "empty"
        directory.mkdir()
    else:
        directory = shard if what == "no directory" else tmp_path / "none"
    printed = run(f"dir={directory}")
    assert printed.startswith("2: error: ")
    assert len(printed.splitlines()) == 1


def test_faulty_statistics(vocabulary: Vocabulary) -> None:
    sums = Totals(samples=1000, predictions=10_000, expected_predictions=10_000, as_mask=8000, as_original=1000)
    check_shares(sums, "here", False, 0.8, 0.1)
    sums.as_mask = 8300
    with pytest.raises(ConfigError, match=r"83\.0% of 10000 masked positions hold \[MASK\], not 80%"):
        check_shares(sums, "here", False, 0.8, 0.1)
