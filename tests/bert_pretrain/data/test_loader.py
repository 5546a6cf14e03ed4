import dataclasses
import gc
import threading
import tracemalloc
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from bert_pretrain.data import loader
from bert_pretrain.data.batch_plan import BatchPlan
from bert_pretrain.data.collate import count, to_micro_batch
from bert_pretrain.data.dataset import ShardSet, check_vocabulary, open_split
from bert_pretrain.data.dynamic_masking import dynamic_masking
from bert_pretrain.data.loader import StepReader, TrainingData, heldout_batches
from bert_pretrain.data.options import DataConfig
from bert_pretrain.data.prefetch import Prefetched
from bert_pretrain.data.sample_order import SampleOrder
from bert_pretrain.data.shard_directory import shard_paths
from bert_pretrain.data.shards import SHARD_FIELDS, write_shard
from bert_pretrain.errors import ConfigError
from tests.conftest import LENGTH, PREDICTIONS, VOCAB_SIZE, header, make_shards, random_arrays


def config(directory: Path, **changes: object) -> DataConfig:
    values: dict = {
        "dir": str(directory),
        "tokenizer": str(directory / "tokenizer"),
        "sequence_length": LENGTH,
        "masking": "static",
        "masked_lm_prob": None,
        "mask_share": None,
        "random_share": None,
        "check": "auto",
        "block_size": 8,
        "prefetch": 3,
        "window": None,
        "cache_dir": "unused",
        "cache_gib": 1.0,
    }
    return DataConfig(**{**values, **changes})


def opened(directory: Path, split: str = "train") -> ShardSet:
    shards = open_split(config(directory), split, VOCAB_SIZE)
    assert shards is not None
    return shards


def training_data(
    directory: Path, batch: int, micro: int, world: int = 1, rank: int = 0, group: bool = False
) -> TrainingData:
    shards = opened(directory)
    return TrainingData(shards, SampleOrder(9, shards.samples, 8), BatchPlan(batch, micro, world), rank, None, 3, group)


def rows(micro_batches: list) -> list[bytes]:
    """Each sample as bytes: unique among the test shards."""
    return [
        sample.numpy().tobytes() + labels.numpy().tobytes()
        for micro_batch in micro_batches
        for sample, labels in zip(micro_batch.input_ids, micro_batch.segment_ids, strict=True)
    ]


def shapes(data: TrainingData, step: int) -> list[tuple[int, ...]]:
    return [tuple(micro_batch.input_ids.shape) for micro_batch in data.micro_batches(step)]


def samples_of(data: TrainingData, step: int) -> list[tuple]:
    """Each sample without its padding: its ids, and its labels by position."""
    found = []
    for batch in data.micro_batches(step):
        length = batch.input_ids.shape[1]
        predicted = batch.masked_labels >= 0
        positions, labels = batch.masked_positions[predicted].tolist(), batch.masked_labels[predicted].tolist()
        for row, ids in enumerate(batch.input_ids):
            kept = slice(None) if batch.attention_mask is None else batch.attention_mask[row].bool()
            own = [(p % length, label) for p, label in zip(positions, labels, strict=True) if p // length == row]
            segments = batch.segment_ids[row][kept].tolist()
            found.append((tuple(ids[kept].tolist()), tuple(segments), tuple(own), int(batch.next_sentence_labels[row])))
    return sorted(found)


@pytest.mark.parametrize("window", [10, 1000])
@pytest.mark.parametrize(("batch", "micro"), [(40, 7), (12, 5), (100, 100)])
def test_grouping_by_length_keeps_the_samples_of_a_step(
    shard_dir: Path, batch: int, micro: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "_WINDOW", window)
    plain, grouped = (training_data(shard_dir, batch, micro, group=group) for group in (False, True))
    for step in range(3):
        assert samples_of(grouped, step) == samples_of(plain, step)
        cut, trimmed = shapes(plain, step), shapes(grouped, step)
        assert [shape[0] for shape in trimmed] == [shape[0] for shape in cut]
        assert all(length % 2 == 0 and length <= LENGTH for _, length in trimmed)  # 16 tokens in eight lengths
    assert sum(a * b for a, b in trimmed) <= sum(a * b for a, b in cut)


def test_short_samples_share_a_micro_batch_and_its_padding_is_trimmed(shard_dir: Path) -> None:
    grouped = training_data(shard_dir, 100, 10, group=True)
    lengths = [length for _, length in shapes(grouped, 0)]
    assert lengths == sorted(lengths)
    assert lengths[0] < LENGTH
    first = next(iter(grouped.micro_batches(0)))
    assert first.attention_mask is None or first.attention_mask[:, -2:].any()


def test_micro_batch_by_hand() -> None:
    arrays = {
        "input_ids": np.array([[2, 4, 12, 3, 0], [2, 11, 4, 4, 3]], np.uint16),
        "input_mask": np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], np.int8),
        "segment_ids": np.array([[0, 0, 1, 1, 0], [0, 0, 1, 1, 1]], np.int8),
        "masked_lm_positions": np.array([[1, 0], [2, 3]], np.uint16),
        "masked_lm_ids": np.array([[30, 0], [31, 32]], np.uint16),
        "next_sentence_labels": np.array([1, 0], np.int8),
    }
    batch = to_micro_batch(arrays)
    assert batch.masked_positions.tolist() == [1, 7, 8]
    assert batch.masked_labels.tolist() == [30, 31, 32]
    wide = {**arrays, "masked_lm_positions": np.pad(arrays["masked_lm_positions"], ((0, 0), (0, 38)))}
    padded = to_micro_batch({**wide, "masked_lm_ids": np.pad(arrays["masked_lm_ids"], ((0, 0), (0, 38)))})
    assert padded.masked_positions.tolist() == [1, 7, 8, 0, 0]  # 80 positions, padded to a multiple of 5
    assert padded.masked_labels.tolist() == [30, 31, 32, -100, -100]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert dataclasses.astuple(count(arrays)) == (2, 3, 9, 16 + 25)
    full = to_micro_batch({name: array[1:] for name, array in arrays.items()})
    assert full.attention_mask is None
    assert all(tensor is None or tensor.dtype == torch.int64 for tensor in batch.tensors())


@pytest.mark.parametrize(("world", "micro"), [(1, 12), (1, 5), (2, 3), (3, 4), (5, 1), (12, 2)])
def test_any_cut_gives_the_same_samples_in_the_same_steps(shard_dir: Path, world: int, micro: int) -> None:
    whole = training_data(shard_dir, 12, 12)
    for step in (0, 3, 8, 25):  # 8 spans the first two epochs, 25 is in the third
        expected = rows(list(whole.micro_batches(step)))
        parts = [training_data(shard_dir, 12, micro, world, rank) for rank in range(world)]
        assert [row for part in parts for row in rows(list(part.micro_batches(step)))] == expected
        total = sum((part.counts(step) for part in parts[1:]), parts[0].counts(step))
        assert total == whole.counts(step)


def test_an_epoch_holds_every_sample_once_across_shards(shard_dir: Path) -> None:
    data = training_data(shard_dir, 10, 10)
    epoch = [row for step in range(10) for row in rows(list(data.micro_batches(step)))]
    shards = opened(shard_dir)
    assert sorted(epoch) == sorted(rows([to_micro_batch(shards.read(0, shards.samples))]))


def test_the_background_thread_gives_the_same_as_direct_calls_from_any_step(shard_dir: Path) -> None:
    data = training_data(shard_dir, 12, 5)
    for first in (0, 7):
        steps = data.steps(first)
        for step in range(first, first + 12):
            batch = next(steps)
            assert batch.counts == training_data(shard_dir, 12, 5).counts(step)
            assert rows(list(batch.micro_batches)) == rows(list(training_data(shard_dir, 12, 5).micro_batches(step)))
        steps.close()


def test_memory_does_not_grow_with_the_steps(shard_dir: Path) -> None:
    data = training_data(shard_dir, 12, 5)

    def read(first: int, stop: int) -> int:
        for step in range(first, stop):
            data.counts(step)
            list(data.micro_batches(step))
        return tracemalloc.get_traced_memory()[0]

    read(0, 300)  # until Python's free lists are full; not traced, which takes many times as long
    tracemalloc.start()
    try:
        before = read(300, 320)
        assert read(320, 400) - before < 20_000  # the 120 blocks between are 160 kB
    finally:
        tracemalloc.stop()


def test_reading_past_the_end_continues_at_the_start(shard_dir: Path) -> None:
    shards = opened(shard_dir)
    wrapped = shards.read(95, 110)
    for name in SHARD_FIELDS:
        np.testing.assert_array_equal(
            wrapped[name], np.concatenate([shards.read(95, 100)[name], shards.read(0, 10)[name]])
        )


@pytest.mark.parametrize(("world", "micro"), [(1, 20), (2, 3), (3, 7), (21, 4)])
def test_heldout_is_read_once_in_order(shard_dir: Path, world: int, micro: int) -> None:
    shards = opened(shard_dir, "heldout")
    parts = [batch for rank in range(world) for batch in heldout_batches(shards, micro, rank, world)]
    assert rows(parts) == rows([to_micro_batch(shards.read(0, 20))])


def test_the_published_layout_is_read(tmp_path: Path) -> None:
    """int32 ids, int8 masks, gzip, no attributes, no manifest, the published names."""
    arrays = random_arrays(np.random.default_rng(1), 30)
    for name in ("books_training_0.hdf5", "books_test_0.hdf5"):
        with h5py.File(tmp_path / name, "w") as file:
            for field in SHARD_FIELDS:
                narrow = field in ("input_mask", "segment_ids", "next_sentence_labels")
                file.create_dataset(field, data=arrays[field].astype("i1" if narrow else "i4"), compression="gzip")
    train, heldout = opened(tmp_path), opened(tmp_path, "heldout")
    assert [path.name for path in train.paths] == ["books_training_0.hdf5"]
    assert [path.name for path in heldout.paths] == ["books_test_0.hdf5"]
    assert train.header is None
    np.testing.assert_array_equal(train.read(0, 30)["input_ids"], arrays["input_ids"])


def test_dynamic_masks_follow_the_shares_of_the_options_and_else_those_of_the_shards(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(5, VOCAB_SIZE))]
    (tmp_path / "tokenizer/vocab.txt").write_text("\n".join(words) + "\n")
    arrays = random_arrays(np.random.default_rng(1), 30)
    write_shard(tmp_path / "train_0.hdf5", arrays, header(mask_share=0.0, random_share=0.0))
    for changes, replaced in (({}, 0.0), ({"mask_share": 1.0}, 1.0)):
        masking = dynamic_masking(config(tmp_path, masking="dynamic", **changes), opened(tmp_path), 5)
        masked = masking(arrays, 0, np.arange(30))
        rows, places = np.nonzero(masked["masked_lm_positions"])
        ids = masked["input_ids"][rows, masked["masked_lm_positions"][rows, places]]
        assert (ids == 4).mean() == replaced
        assert (ids == masked["masked_lm_ids"][rows, places]).mean() == 1 - replaced


def test_dynamic_masks_differ_by_epoch_and_restore_to_the_same_ids(tmp_path: Path) -> None:
    make_shards(tmp_path)
    (tmp_path / "tokenizer").mkdir()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(VOCAB_SIZE - 5))]
    (tmp_path / "tokenizer" / "vocab.txt").write_text("\n".join(names) + "\n")
    shards = opened(tmp_path)
    masking = dynamic_masking(config(tmp_path, masking="dynamic"), shards, 5)
    assert masking is not None
    samples = np.arange(20, 60)
    arrays = shards.read(20, 60)
    first, again, next_epoch = (masking(arrays, epoch, samples) for epoch in (0, 0, 1))
    for name in SHARD_FIELDS:
        np.testing.assert_array_equal(first[name], again[name])
    assert (first["masked_lm_positions"] != next_epoch["masked_lm_positions"]).any()
    part = masking({name: array[7:9] for name, array in arrays.items()}, 0, samples[7:9])
    np.testing.assert_array_equal(part["input_ids"], first["input_ids"][7:9])
    for masked in (first, next_epoch):
        restored = masked["input_ids"].copy()
        for row, (positions, labels) in enumerate(
            zip(masked["masked_lm_positions"], masked["masked_lm_ids"], strict=True)
        ):
            restored[row, positions[positions > 0]] = labels[positions > 0]
        plain = arrays["input_ids"].copy()
        for row in range(len(plain)):
            chosen = arrays["masked_lm_positions"][row]
            plain[row, chosen[chosen > 0]] = arrays["masked_lm_ids"][row][chosen > 0]
        np.testing.assert_array_equal(restored, plain)


def damaged(directory: Path, kind: str) -> None:
    """Make shards and damage one."""
    make_shards(directory)
    shard = directory / "train_00001.hdf5"
    if kind == "truncated":
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    elif kind == "no hdf5":
        shard.write_text("not a shard")
    elif kind == "missing":
        shard.unlink()
    elif kind == "flipped":
        with h5py.File(shard, "r+") as file:
            file["segment_ids"][3, 2] ^= 1
    elif kind == "ids":
        with h5py.File(shard, "r+") as file:
            file["input_ids"][3, 2] = VOCAB_SIZE
    elif kind == "field":
        with h5py.File(shard, "r+") as file:
            del file["masked_lm_ids"]
    elif kind == "manifest":
        (directory / "manifest.json").write_text('{"shards": [{"name": 3}]}')
    elif kind == "vocabulary":
        arrays = random_arrays(np.random.default_rng(1), 10)
        write_shard(shard, arrays, header(vocab_hash="other"))
    elif kind == "predictions":
        arrays = random_arrays(np.random.default_rng(1), 10, predictions=PREDICTIONS + 1)
        write_shard(shard, arrays, header(max_predictions=PREDICTIONS + 1))
    elif kind == "length":
        write_shard(shard, random_arrays(np.random.default_rng(1), 10, 20), header(sequence_length=20))
    elif kind == "empty":
        for file in directory.iterdir():
            file.unlink()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", r"train_00001\.hdf5 cannot be read.*truncated"),
        ("no hdf5", r"train_00001\.hdf5 cannot be read"),
        ("missing", r"lists train_00001\.hdf5, which is not there"),
        ("flipped", r"train_00001\.hdf5 is damaged"),
        ("ids", rf"input_ids holds {VOCAB_SIZE}, but the model takes 0 to {VOCAB_SIZE - 1}"),
        ("field", r"has no data set 'masked_lm_ids'"),
        ("manifest", r"manifest\.json cannot be read"),
        ("vocabulary", r"different vocabularies"),
        ("predictions", r"up to 4 masked tokens a sample"),
        ("length", r"data\.sequence_length is 16, but shard .*train_00001\.hdf5 has samples of 20"),
        ("empty", r"holds no shards"),
    ],
)
def test_bad_shards_are_named_before_training(tmp_path: Path, kind: str, message: str) -> None:
    damaged(tmp_path, kind)
    with pytest.raises(ConfigError, match=message) as error:
        open_split(config(tmp_path), "train", VOCAB_SIZE)
    assert "\n" not in str(error.value)


def test_a_model_of_another_vocabulary_is_refused(shard_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.vocab_size is 50.*vocabulary of 97"):
        open_split(config(shard_dir), "train", 50)


def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    make_shards(tmp_path)
    messages: list[str] = []
    check_vocabulary(config(tmp_path), [opened(tmp_path)], messages.append)
    assert "no vocabulary at" in messages[0]
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.txt").write_text("[PAD]\n")
    with pytest.raises(ConfigError, match=r"data\.tokenizer is .*made with another vocabulary"):
        check_vocabulary(config(tmp_path), [opened(tmp_path)], messages.append)


def test_the_split_is_a_whole_word_of_the_name(tmp_path: Path) -> None:
    arrays = random_arrays(np.random.default_rng(1), 10)
    for name in ("wiki_latest_0.hdf5", "books_test_0.hdf5", "heldout_00000.h5", "contest.hdf5"):
        write_shard(tmp_path / name, arrays, header())
    assert [path.name for path in shard_paths(tmp_path, "heldout")] == ["books_test_0.hdf5", "heldout_00000.h5"]
    assert [path.name for path in shard_paths(tmp_path, "train")] == ["contest.hdf5", "wiki_latest_0.hdf5"]


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.dir is .*no directory"):
        open_split(config(tmp_path / "nowhere"), "train", VOCAB_SIZE)


def test_a_shard_damaged_during_the_run_is_named(tmp_path: Path) -> None:
    make_shards(tmp_path)
    data = training_data(tmp_path, 12, 5)
    with h5py.File(tmp_path / "train_00000.hdf5", "r+") as file:
        file["input_ids"][:] = VOCAB_SIZE + 3
    batches = (micro_batch for step in data.steps(0) for micro_batch in step.micro_batches)
    with pytest.raises(ConfigError, match=r"train_0000.\.hdf5: input_ids holds 100"):
        list(islice(batches, 60))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_reading_ahead_ends_with_the_items(count: int) -> None:
    assert list(Prefetched(iter(range(count)), 2)) == list(range(count))


def test_reading_ahead_raises_the_errors_of_its_thread_here() -> None:
    def items():
        yield 1
        raise OSError("the disk")

    ahead = Prefetched(items(), 2)
    assert next(ahead) == 1
    with pytest.raises(OSError, match="the disk"):
        next(ahead)


@pytest.mark.parametrize("reader", [lambda items: items, lambda items: StepReader(items, None)])
def test_a_reader_ahead_that_nobody_closed_is_collected_without_its_thread(reader: Callable) -> None:
    """Garbage is collected anywhere, also while a lock is held that the thread needs to end."""
    go_on = threading.Event()

    def items():
        yield 1
        go_on.wait()
        yield 2

    ahead = reader(Prefetched(items(), 1))
    next(ahead)  # now the thread waits
    circle = [ahead]
    circle.append(circle)
    rescue = threading.Timer(20, go_on.set)
    rescue.start()
    del ahead, circle
    gc.collect()
    assert not go_on.is_set(), "the collector waited for the thread"
    go_on.set()
    rescue.cancel()
