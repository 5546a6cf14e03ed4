"""The shard format: writing, reading, damage."""

import json
import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from bert_pretrain.data.shard_directory import read_manifest, shard_paths, write_manifest
from bert_pretrain.data.shards import SHARD_FIELDS, ShardHeader, ShardReader, check_ids, content_checksum, write_shard
from bert_pretrain.errors import ConfigError
from bert_pretrain.files.retry import DamagedError

HEADER = ShardHeader(12, 2, 100, "v", "t", 0.15, False, 0.1, 1, 7, "train")


def make_arrays(samples: int = 20, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "input_ids": rng.integers(5, 100, (samples, 12)),
        "input_mask": np.ones((samples, 12), np.int64),
        "segment_ids": np.tile(np.arange(12) > 6, (samples, 1)).astype(np.int64),
        "masked_lm_positions": np.tile([3, 8], (samples, 1)),
        "masked_lm_ids": rng.integers(5, 100, (samples, 2)),
        "next_sentence_labels": rng.integers(0, 2, samples),
    }


def write_legacy(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """As in the published pipeline: gzip, int32 and int8, no attributes."""
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            dtype = "i4" if name in ("input_ids", "masked_lm_positions", "masked_lm_ids") else "i1"
            file.create_dataset(name, data=values, dtype=dtype, compression="gzip")


def test_write_and_read(tmp_path: Path) -> None:
    arrays = make_arrays()
    row = write_shard(tmp_path / "train_00000.hdf5", arrays, HEADER)
    assert [path.name for path in tmp_path.iterdir()] == ["train_00000.hdf5"]
    reader = ShardReader(tmp_path / "train_00000.hdf5")
    assert (reader.samples, reader.sequence_length, reader.max_predictions) == (20, 12, 2)
    assert reader.header == HEADER
    assert reader.checksum == row["checksum"] == content_checksum([arrays])
    part = reader.read(5, 9)
    for name in SHARD_FIELDS:
        assert (part[name] == arrays[name][5:9]).all()
    reader.check_content(100)
    reader.close()


def test_the_shares_of_masks_are_stored_where_they_are_not_the_default(tmp_path: Path) -> None:
    """So that shards with the default shares have the bytes that earlier versions wrote."""
    arrays, files = make_arrays(4), []
    for name, changes in (("default", {}), ("other", {"mask_share": 1.0, "random_share": 0.0})):
        write_shard(tmp_path / name, arrays, replace(HEADER, **changes))
        assert ShardReader(tmp_path / name).header == replace(HEADER, **changes)
        with h5py.File(tmp_path / name) as file:
            files.append({key for key in file.attrs if "_share" in key})
    assert files == [set(), {"mask_share", "random_share"}]


def test_all_metadata_has_checksums_and_none_is_in_a_heap(tmp_path: Path) -> None:
    """HDF5's specification: superblocks and object headers (OHDR) from version 2 on have one, global heaps (GCOL) not.

    Variable-length strings are stored in a GCOL; a damaged one made the library loop forever.
    """
    write_shard(tmp_path / "train_00000.hdf5", make_arrays(), HEADER)
    content = (tmp_path / "train_00000.hdf5").read_bytes()
    assert content[8] >= 2
    assert b"OHDR" in content
    assert b"GCOL" not in content


def test_variable_length_strings_of_our_first_shards_are_read(tmp_path: Path) -> None:
    path = tmp_path / "train_00000.hdf5"
    row = write_shard(path, make_arrays(), HEADER)
    with h5py.File(path, "r+") as file:
        for name in ("checksum", "vocab_hash", "tokenizer_hash", "split"):
            value = file.attrs[name].decode()
            del file.attrs[name]
            file.attrs[name] = value
    assert b"GCOL" in path.read_bytes()
    reader = ShardReader(path)
    assert (reader.header, reader.checksum) == (HEADER, row["checksum"])
    reader.close()


def test_the_checksum_depends_on_the_values_only() -> None:
    arrays = make_arrays()
    same = {name: np.asfortranarray(values.astype(np.uint16)) for name, values in arrays.items()}
    assert content_checksum([arrays]) == content_checksum([same])
    same["input_ids"][3, 4] += 1
    assert content_checksum([arrays]) != content_checksum([same])


@pytest.mark.parametrize("field", SHARD_FIELDS)
def test_a_changed_value_is_found(tmp_path: Path, field: str) -> None:
    path = tmp_path / "a.hdf5"
    write_shard(path, make_arrays(), HEADER)
    with h5py.File(path, "r+") as file:
        data = file[field][...]
        data.flat[0] = 0 if data.flat[0] else 1
        file[field][...] = data
    with pytest.raises(ConfigError, match=r"a\.hdf5 is damaged"):
        ShardReader(path).check_content(100)


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_a_truncated_file(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "a.hdf5"
    write_shard(path, make_arrays(), HEADER)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content) if keep < 1 else keep)])
    with pytest.raises(ConfigError, match=r"a\.hdf5 cannot be read"):
        ShardReader(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        ShardReader(tmp_path / "none.hdf5")


@pytest.mark.parametrize(
    ("field", "values", "message"),
    [
        ("segment_ids", None, "no data set 'segment_ids'"),
        ("input_mask", np.ones((20, 12), np.float32), "dtype float32"),
        ("input_ids", np.ones(20, np.int32), "1 dimensions"),
        ("masked_lm_ids", np.ones((20, 3), np.int32), r"shape \(20, 3\)"),
        ("next_sentence_labels", np.ones(19, np.int32), r"shape \(19,\)"),
    ],
)
def test_a_wrong_layout(tmp_path: Path, field: str, values: np.ndarray | None, message: str) -> None:
    path = tmp_path / "a.hdf5"
    write_shard(path, make_arrays(), HEADER)
    with h5py.File(path, "r+") as file:
        del file[field]
        if values is not None:
            file[field] = values
    with pytest.raises(ConfigError, match=message):
        ShardReader(path)


def test_legacy_files_are_read(tmp_path: Path) -> None:
    arrays = make_arrays()
    write_legacy(tmp_path / "wiki_training_0.hdf5", arrays)
    reader = ShardReader(tmp_path / "wiki_training_0.hdf5")
    assert reader.header is None
    assert reader.checksum is None
    assert (reader.read(0, 20)["masked_lm_ids"] == arrays["masked_lm_ids"]).all()
    reader.check_content(100)
    with pytest.raises(ConfigError, match=r"holds 9[0-9], but the model takes 0 to 49"):
        reader.check_content(50)


@pytest.mark.parametrize("change", ["version", "attribute", "samples"])
def test_a_wrong_header(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a.hdf5"
    write_shard(path, make_arrays(), HEADER)
    with h5py.File(path, "r+") as file:
        if change == "version":
            file.attrs["format_version"] = 99
        elif change == "attribute":
            del file.attrs["vocab_hash"]
        else:
            file.attrs["samples"] = 21
    with pytest.raises(ConfigError, match=r"format version 99|lacks the attributes vocab_hash|20 rows, but 21 samples"):
        ShardReader(path)


def test_large_vocabularies_take_32_bits(tmp_path: Path) -> None:
    arrays = make_arrays()
    arrays["input_ids"][0, 1] = 70_000
    header = ShardHeader(**{**HEADER.__dict__, "vocab_size": 70_001})
    write_shard(tmp_path / "a.hdf5", arrays, header)
    assert ShardReader(tmp_path / "a.hdf5").read(0, 1)["input_ids"][0, 1] == 70_000


def test_an_interrupted_write_leaves_no_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_shard(tmp_path / "a.hdf5", make_arrays(), HEADER)
    assert not (tmp_path / "a.hdf5").exists()


def test_splits_are_those_of_the_manifest_or_of_the_names(tmp_path: Path) -> None:
    names = ["train_00000.hdf5", "heldout_00000.hdf5"]
    rows = [write_shard(tmp_path / name, make_arrays(), HEADER) for name in names]
    assert [path.name for path in shard_paths(tmp_path, "train")] == names[:1]
    assert [path.name for path in shard_paths(tmp_path, "heldout")] == names[1:]
    write_manifest(tmp_path, {"shards": rows[:1]})
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert manifest["shards"] == rows[:1]
    assert shard_paths(tmp_path, "heldout") == []
    (tmp_path / names[0]).unlink()
    with pytest.raises(ConfigError, match=r"lists train_00000\.hdf5, which is not there"):
        shard_paths(tmp_path, "train")


@pytest.mark.parametrize("content", ["{", "[]", "{}", json.dumps({"shards": [{"name": 1}]})])
def test_a_broken_manifest(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ConfigError, match=r"manifest\.json cannot be read"):
        read_manifest(tmp_path)


def test_directories_without_shards(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no shards"):
        shard_paths(tmp_path, "train")
    with pytest.raises(ConfigError, match="no directory"):
        shard_paths(tmp_path / "none", "train")


@pytest.mark.parametrize("seed", range(4))
def test_a_flipped_byte_anywhere_is_found_or_harmless(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path = tmp_path / "s.hdf5"
    arrays = make_arrays()
    write_shard(path, arrays, HEADER)
    intact = path.read_bytes()
    refused = harmless = 0
    for offset in rng.integers(0, len(intact), 40):
        damaged = bytearray(intact)
        damaged[offset] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(damaged))
        try:
            with closing(ShardReader(path)) as reader:
                reader.check_content(100)
                read = reader.read(0, reader.samples)
        except ConfigError as error:
            refused += str(path) in str(error)
        else:  # bytes that are never read
            harmless += all(np.array_equal(read[name], arrays[name]) for name in SHARD_FIELDS)
    assert refused > 0
    assert refused + harmless == 40


def test_a_sample_without_a_token_is_damage() -> None:
    """A disk that loses pages gives zeros, which are ids in range."""
    arrays = make_arrays()
    assert check_ids(arrays, 100, Path("x")) is arrays
    arrays["input_mask"][2] = 0
    with pytest.raises(DamagedError, match="shard x has samples without a token"):
        check_ids(arrays, 100, Path("x"))
