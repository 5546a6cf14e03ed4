"""Directories of shards: disks that fail, many files, and files that are not what the user means."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from bert_pretrain.data import shards as shards_module
from bert_pretrain.data.dataset import check_vocabulary, open_split, tokenizer_size
from bert_pretrain.data.options import DataConfig
from bert_pretrain.data.shard_directory import directory_notes, shard_paths
from bert_pretrain.data.shards import SHARD_FIELDS, ShardReader
from bert_pretrain.errors import EXIT_OUTAGE, ConfigError, OutageError
from bert_pretrain.files import retry
from bert_pretrain.files.retry import DamagedError, read_error
from tests.conftest import VOCAB_SIZE, make_shards, random_arrays

HDF5_OUTAGE = "Can't synchronously read data (file read failed: filename = '/a/errno = 2', errno = 5, offset = 0)"


def options(directory: Path, check: str = "headers") -> DataConfig:
    return DataConfig(
        "unused", 1.0, str(directory), str(directory / "tokenizer"), 16, "static", None, None, None, check, 8, None, 2
    )


def write_legacy(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with h5py.File(path, "w") as file:
        for field in SHARD_FIELDS:
            file[field] = arrays[field]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", slept.append)
    return slept


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), RuntimeError(HDF5_OUTAGE)])
def test_an_outage_while_reading_is_waited_out(
    shard_dir: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float], error: Exception
) -> None:
    train = open_split(options(shard_dir), "train", VOCAB_SIZE)
    expected, failures, rows = train.read(0, 100), [error] * 6, ShardReader._rows

    def failing(*arguments: object) -> object:
        if failures:
            raise failures.pop()
        return rows(*arguments)

    monkeypatch.setattr(ShardReader, "_rows", failing)
    np.testing.assert_array_equal(train.read(0, 100)["input_ids"], expected["input_ids"])
    assert sum(pauses) > 60


def test_an_outage_that_lasts_has_the_status_that_restarts(
    shard_dir: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    def failing(*_: object, **__: object) -> object:
        raise RuntimeError(HDF5_OUTAGE)

    monkeypatch.setattr(shards_module.h5py, "File", failing)
    with pytest.raises(OutageError) as error:
        open_split(options(shard_dir), "train", VOCAB_SIZE)
    assert error.value.exit_status == EXIT_OUTAGE


def test_damage_is_read_once_more(shard_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system may have cached a bad page."""
    train, rows, reads = open_split(options(shard_dir), "train", VOCAB_SIZE), ShardReader._rows, 0

    def once_wrong(*arguments: object) -> object:
        nonlocal reads
        reads += 1
        if reads == 1:
            raise DamagedError("wrong")
        return rows(*arguments)

    monkeypatch.setattr(ShardReader, "_rows", once_wrong)
    assert len(train.read(0, 20)["input_ids"]) == 20
    assert reads == 2


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EACCES, "permission"), (errno.EMFILE, "ulimit -n"), (errno.ENOENT, "missing")],
)
def test_causes_are_told_apart(number: int, words: str) -> None:
    for error in (OSError(number, os.strerror(number)), RuntimeError(f"unable to open file: errno = {number}, flags")):
        found = read_error(error, "shard a", "restore it")
        assert isinstance(found, ConfigError)
        assert not isinstance(found, DamagedError)
        assert words in str(found)
        assert "damaged" not in str(found)
        assert "remove" not in str(found)


def test_more_shards_than_open_files_allowed(tmp_path: Path) -> None:
    arrays = random_arrays(np.random.default_rng(1), 2)
    write_legacy(tmp_path / "train_0.hdf5", arrays)
    for number in range(1, 120):
        shutil.copy(tmp_path / "train_0.hdf5", tmp_path / f"train_{number}.hdf5")
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from tests.bert_pretrain.data.test_shard_directory import options\n"
        "from bert_pretrain.data.dataset import open_split\n"
        "from data_prep import verify\n"
        "verify.check_shares = lambda *_: None\n"  # random samples
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))\n"
        f"train = open_split(options(Path({str(tmp_path)!r}), 'content'), 'train', {VOCAB_SIZE})\n"
        "print(len(train.read(0, 240)['input_ids']), verify.verify_split(Path(), train.paths, None, 0).shards)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("240 120", 0), done.stderr


def test_shards_that_the_manifest_does_not_list_are_said(tmp_path: Path) -> None:
    make_shards(tmp_path)
    shutil.copy(tmp_path / "train_00000.hdf5", tmp_path / "train_00099.hdf5")
    (tmp_path / "._train_00000.hdf5").write_bytes(b"\0\5\x16\7")
    told: list[str] = []
    assert open_split(options(tmp_path), "train", VOCAB_SIZE, told.append).samples == 100
    assert "train_00099.hdf5, which manifest.json does not list" in told[0]
    assert "._train_00000.hdf5, because of the dot" in told[1]


@pytest.mark.parametrize("other", ["train_00001.hdf5", "heldout_00000.hdf5"])
def test_a_shard_that_is_not_the_manifest_s_is_refused(tmp_path: Path, other: str) -> None:
    make_shards(tmp_path, train=(20, 20), heldout=(20,))  # the same number of samples: the checksum tells
    shutil.copy(tmp_path / other, tmp_path / "train_00000.hdf5")
    with pytest.raises(ConfigError, match=r"train_00000\.hdf5: manifest\.json lists 20 samples with checksum"):
        open_split(options(tmp_path), "train", VOCAB_SIZE)


@pytest.mark.parametrize("name", ["validation_0", "dev_0", "wiki_test_3", "eval_0", "Valid_1"])
def test_without_a_manifest_evaluation_files_are_held_out_and_said(tmp_path: Path, name: str) -> None:
    for stem in ("train_0", "wikidev_0", "evalue_1", name):
        write_legacy(tmp_path / f"{stem}.hdf5", random_arrays(np.random.default_rng(1), 4))
    assert {path.stem for path in shard_paths(tmp_path, "train")} == {"train_0", "wikidev_0", "evalue_1"}
    assert [path.stem for path in shard_paths(tmp_path, "heldout")] == [name]
    assert directory_notes(tmp_path) == [f"data.dir {tmp_path} has no manifest.json; held out by name: {name}.hdf5"]


def test_the_folders_that_hold_the_shards_are_named(tmp_path: Path) -> None:
    for length in ("128", "512"):
        make_shards(tmp_path / length)
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(ConfigError, match=r"it holds the folders 128, 512: give data\.dir="):
        shard_paths(tmp_path, "train")


def test_legacy_ids_above_the_tokenizer_are_found_before_training(tmp_path: Path) -> None:
    """The model is padded, so that the ids are valid for it alone."""
    arrays = random_arrays(np.random.default_rng(1), 30)
    write_legacy(tmp_path / "train_0.hdf5", arrays)
    largest = int(max(arrays["input_ids"].max(), arrays["masked_lm_ids"].max()))
    (tmp_path / "tokenizer").mkdir()
    for tokens in (largest, largest + 1):
        (tmp_path / "tokenizer/vocab.txt").write_text("".join(f"w{number}\n" for number in range(tokens)))
        config = options(tmp_path, "content")
        if tokens == largest:
            with pytest.raises(ConfigError, match=rf"holds {largest}, but the model takes 0 to {largest - 1}"):
                open_split(config, "train", 128, tokens=tokenizer_size(config))
            continue
        check_vocabulary(config, [open_split(config, "train", 128, tokens=tokenizer_size(config))], print)
