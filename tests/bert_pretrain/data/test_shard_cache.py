"""Shards at an address: the same samples as from a disk, in a cache of bounded size that processes share."""

import json
import multiprocessing
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import fsspec
import numpy as np
import pytest

from bert_pretrain import retry
from bert_pretrain.data.batch_plan import BatchPlan
from bert_pretrain.data.dataset import ShardSet, open_split
from bert_pretrain.data.loader import TrainingData
from bert_pretrain.data.remote_shards import check_cache
from bert_pretrain.data.sample_order import SampleOrder
from bert_pretrain.data.shard_cache import CacheConfig, remote_folder
from bert_pretrain.data.shard_directory import MANIFEST, read_manifest, shard_folder, shard_paths
from bert_pretrain.data.shards import SHARD_FIELDS, ShardReader
from bert_pretrain.errors import ConfigError, OutageError
from tests.conftest import LENGTH, TEST_RECIPE, VOCAB_SIZE, make_shards, run_module
from tests.web_server import WebServer

SIZES = (40,) * 6


class Options:
    """Of ``data.*``, what opening shards needs."""

    def __init__(self, folder: Path, window: int | None = None, cache_gib: float = 1.0) -> None:
        self.dir, self.sequence_length, self.check = str(folder), LENGTH, "auto"
        self.window, self.cache_gib = window, cache_gib


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "PAUSES", (0.01,) * 4)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("remote") / "set", SIZES)


@pytest.fixture
def address(source: Path, request: pytest.FixtureRequest) -> str:
    """The same shards in fsspec's memory."""
    system = fsspec.filesystem("memory")
    folder = f"/{request.node.name}/set"
    for path in source.iterdir():
        system.pipe(f"{folder}/{path.name}", path.read_bytes())
    return f"memory:/{folder}"


def opened(address: str, cache: Path, shards: float = 100, split: str = "train") -> ShardSet:
    """``shards``: as many fit into the cache."""
    size = 40 * _row_bytes(cache) + 5000
    found = open_split(Options(shard_folder(address, CacheConfig(str(cache), shards * size / 2**30))), split, VOCAB_SIZE)
    assert found is not None
    return found


def _row_bytes(_: Path) -> int:
    return 16 * (2 + 1 + 1) + 3 * (2 + 2) + 1


def all_rows(shards: ShardSet) -> dict[str, np.ndarray]:
    return shards.read(0, shards.samples)


def assert_same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    for name in SHARD_FIELDS:
        np.testing.assert_array_equal(first[name], second[name])


def cached(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("*/*.hdf5*"))


def bytes_in(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.glob("*/*.hdf5*"))


def local(source: Path) -> ShardSet:
    shards = open_split(Options(source), "train", VOCAB_SIZE)
    assert shards is not None
    return shards


def test_the_same_samples_as_from_a_disk(source: Path, address: str, tmp_path: Path) -> None:
    here, there = local(source), opened(address, tmp_path)
    assert cached(tmp_path) == ["train_00000.hdf5"]  # the manifest speaks for the others
    assert there.fingerprint == here.fingerprint
    assert (there.bounds == here.bounds).all()
    assert_same(all_rows(there), all_rows(here))
    assert len(cached(tmp_path)) == len(SIZES)


def test_the_bound_holds_and_the_longest_unused_goes_first(source: Path, address: str, tmp_path: Path) -> None:
    shards, limit = opened(address, tmp_path, shards=3), 0
    folder = remote_folder(shards.paths[0].parent)
    assert folder is not None
    limit = folder.limit
    for number in (0, 1, 2, 0, 3):
        shards.read(number * 40, number * 40 + 1)
        assert bytes_in(tmp_path) <= limit
        time.sleep(0.01)
    assert cached(tmp_path) == [f"train_0000{number}.hdf5" for number in (0, 2, 3)]
    with folder.held("train_00000.hdf5"), folder.held("train_00002.hdf5"):
        shards.read(160, 161)
    assert cached(tmp_path) == [f"train_0000{number}.hdf5" for number in (0, 2, 4)]  # those in use stayed


def test_no_shard_in_use_is_removed_to_make_room(address: str, tmp_path: Path) -> None:
    shards = opened(address, tmp_path, shards=1)
    folder = remote_folder(shards.paths[0].parent)
    assert folder is not None
    reader = threading.Thread(target=shards.read, args=(40, 41))
    with folder.held("train_00000.hdf5"):
        reader.start()
        reader.join(0.3)
        assert reader.is_alive()
        assert "train_00000.hdf5" in cached(tmp_path)
    reader.join(60)
    assert cached(tmp_path) == ["train_00001.hdf5"]


def test_a_shard_larger_than_the_cache(address: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train_00000.hdf5 has .* GiB, but data.cache_gib is .*; give at least"):
        opened(address, tmp_path, shards=0.5)
    assert cached(tmp_path) == []


def test_what_a_killed_process_left_is_removed(address: str, tmp_path: Path) -> None:
    folder = shard_folder(address, CacheConfig(str(tmp_path), 1.0))
    (folder / "train_00003.hdf5.partial").write_bytes(bytes(8000))
    (folder / "train_00000.hdf5.partial").write_bytes(bytes(8000))
    shards = opened(address, tmp_path, shards=1)
    shards.read(0, 1)
    assert cached(tmp_path) == ["train_00000.hdf5"]


def _read_some(address: str, cache: Path, seed: int, limit: int, results: object) -> None:
    shards, most = opened(address, cache, shards=2), 0
    rng = np.random.default_rng(seed)
    for start in rng.integers(0, shards.samples, 40):
        shards.read(int(start), int(start) + 5)
        most = max(most, bytes_in(cache))
    results.put((most, int(all_rows(shards)["input_ids"].sum())))  # type: ignore[attr-defined]


def test_processes_share_a_cache_within_its_bound(source: Path, tmp_path: Path) -> None:
    address, context = f"file://{source}", multiprocessing.get_context("fork")
    limit = int(2 * (40 * _row_bytes(tmp_path) + 5000))
    results = context.Queue()
    processes = [context.Process(target=_read_some, args=(address, tmp_path, n, limit, results)) for n in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    expected = int(all_rows(local(source))["input_ids"].sum())
    assert [total for _, total in found] == [expected, expected]
    assert max(most for most, _ in found) <= limit


@pytest.fixture
def web(source: Path) -> Iterator[WebServer]:
    pytest.importorskip("aiohttp", reason="fsspec reads https:// with aiohttp (the extra remote)")
    with WebServer(source.parent) as server:
        yield server


def test_each_shard_is_downloaded_once_and_before_it_is_needed(source: Path, web: WebServer, tmp_path: Path) -> None:
    """With a window, two windows fit into the cache and the next one comes while this one is read."""
    shards = opened(f"{web.address}/set", tmp_path, shards=5)
    order = SampleOrder(3, shards.samples, 8, window=40)
    check_cache(Options(source, 40, 5 * 1e-5), shards, None)  # type: ignore[arg-type]
    data = TrainingData(shards, order, BatchPlan(8, 8, 1), 0, None, 2, False)
    list(data.micro_batches(0))
    data.counts(0)
    needed = {number for first, count in list(order.windows(0))[:2] if False for number in (first, count)}
    assert not needed
    for step in range(shards.samples // 8):
        data.counts(step)
        list(data.micro_batches(step))
    assert {name for name in web.gets if name.endswith("hdf5")} == {f"train_0000{n}.hdf5" for n in range(6)}
    assert max(web.gets[f"train_0000{n}.hdf5"] for n in range(6)) <= 2  # an epoch's first and last window share one
