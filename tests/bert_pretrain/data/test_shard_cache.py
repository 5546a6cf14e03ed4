"""Shards at an address: the same samples as from a disk, in a cache of bounded size that processes share."""

import json
import multiprocessing
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import fsspec
import numpy as np
import pytest

from bert_pretrain.data.batch_plan import BatchPlan
from bert_pretrain.data.dataset import ShardSet, open_split
from bert_pretrain.data.loader import TrainingData
from bert_pretrain.data.remote_shards import check_cache
from bert_pretrain.data.sample_order import SampleOrder
from bert_pretrain.data.shard_cache import CacheConfig, remote_folder
from bert_pretrain.data.shard_directory import MANIFEST, shard_folder
from bert_pretrain.data.shards import SHARD_FIELDS
from bert_pretrain.errors import ConfigError, OutageError
from bert_pretrain.files import retry
from tests.conftest import HANGS, LENGTH, TEST_RECIPE, VOCAB_SIZE, make_shards, run_module
from tests.web_server import WebServer

SIZES = (40,) * 6
ROW_BYTES = 16 * (2 + 1 + 1) + 3 * (2 + 2) + 1


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
    size = 40 * ROW_BYTES + 5000
    found = open_split(
        Options(shard_folder(address, CacheConfig(str(cache), shards * size / 2**30))), split, VOCAB_SIZE
    )
    assert found is not None
    return found


def all_rows(shards: ShardSet) -> dict[str, np.ndarray]:
    return shards.read(0, shards.samples)


def assert_same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    for name in SHARD_FIELDS:
        np.testing.assert_array_equal(first[name], second[name])


def cached(cache: Path) -> list[str]:
    """The shards that are there as a whole."""
    return sorted(path.name for path in cache.glob("*/*.hdf5"))


def bytes_in(cache: Path) -> int:
    """Whole shards and beginnings; other processes move them meanwhile."""
    total = 0
    for path in cache.glob("*/*.hdf5*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


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
    limit = int(2 * (40 * ROW_BYTES + 5000))
    results = context.Queue()
    processes = [context.Process(target=_read_some, args=(address, tmp_path, n, limit, results)) for n in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=HANGS) for _ in processes]
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


def test_one_window_after_the_other_comes_through_a_small_cache(source: Path, web: WebServer, tmp_path: Path) -> None:
    """A cache of five of six shards: an epoch downloads each shard once, and again only where its windows touch."""
    shards = opened(f"{web.address}/set", tmp_path, shards=5)
    folder = remote_folder(shards.paths[0].parent)
    assert folder is not None
    order, most = SampleOrder(3, shards.samples, 8, window=40), 0
    data = TrainingData(shards, order, BatchPlan(8, 8, 1), 0, None, 2, False)
    for step in range(shards.samples // 8):
        data.counts(step)
        list(data.micro_batches(step))
        most = max(most, bytes_in(tmp_path))
    assert most <= folder.limit
    gets = [web.gets[f"train_0000{number}.hdf5"] for number in range(6)]
    assert min(gets) >= 1
    assert max(gets) <= 2
    assert sum(gets) <= 8


def test_the_next_window_comes_before_it_is_needed(web: WebServer, tmp_path: Path) -> None:
    shards = opened(f"{web.address}/set", tmp_path)
    shards.prefetch([(80, 40), (120, 10)])
    end = time.monotonic() + 120
    while len(cached(tmp_path)) < 3 and time.monotonic() < end:
        time.sleep(0.02)
    assert cached(tmp_path) == ["train_00000.hdf5", "train_00002.hdf5", "train_00003.hdf5"]
    before = web.gets.total()
    shards.read(80, 130)
    assert web.gets.total() == before


@pytest.mark.parametrize("fault", ["500", "truncated", "closed"])
def test_a_fault_of_the_server_is_waited_out(source: Path, web: WebServer, tmp_path: Path, fault: str) -> None:
    shards = opened(f"{web.address}/set", tmp_path)
    web.faults["train_00001.hdf5"] = [fault]
    assert_same(all_rows(shards), all_rows(local(source)))


def test_a_server_gone_for_good_is_one_line(web: WebServer, tmp_path: Path) -> None:
    shards = opened(f"{web.address}/set", tmp_path)
    web.down = True
    with pytest.raises(OutageError, match=r"http.*/set/train_00001.hdf5 cannot be read .* run the same command again"):
        shards.read(40, 41)
    assert cached(tmp_path) == ["train_00000.hdf5"]
    web.down = False
    shards.read(40, 41)


def test_a_shard_that_is_not_that_of_the_manifest(address: str, tmp_path: Path) -> None:
    shards, system = opened(address, tmp_path), fsspec.filesystem("memory")
    folder = address.removeprefix("memory:/")
    content = bytearray(system.cat_file(f"{folder}/train_00001.hdf5"))
    system.pipe(f"{folder}/train_00001.hdf5", system.cat_file(f"{folder}/train_00002.hdf5"))
    with pytest.raises(ConfigError, match=r"memory:.*/train_00001.hdf5 is not the shard that its manifest.json lists"):
        shards.read(40, 41)
    content[-50] ^= 1
    system.pipe(f"{folder}/train_00001.hdf5", bytes(content))
    with pytest.raises(ConfigError, match=r"train_00001.hdf5 is not the shard .* or is damaged"):
        shards.read(40, 41)
    assert cached(tmp_path) == ["train_00000.hdf5"]


def test_shards_made_anew_get_another_folder(address: str, tmp_path: Path) -> None:
    cache, system = CacheConfig(str(tmp_path), 1.0), fsspec.filesystem("memory")
    first, path = shard_folder(address, cache), f"{address.removeprefix('memory:/')}/{MANIFEST}"
    assert shard_folder(address, cache) == first
    manifest = json.loads(system.cat_file(path))
    system.pipe(path, json.dumps({**manifest, "sources": []}).encode())
    assert shard_folder(address, cache) != first


@pytest.mark.parametrize(("window", "expected"), [(None, "shuffles all shards together"), (80, "shuffles 80 samples")])
def test_a_cache_too_small_for_the_order(address: str, tmp_path: Path, window: int | None, expected: str) -> None:
    shards = opened(address, tmp_path, shards=3)
    gib = 3 * shards.paths[0].stat().st_size / 2**30
    with pytest.raises(ConfigError, match=f"{expected}.*set data.cache_gib=.*data.window"):
        check_cache(Options(tmp_path, window, gib), [shards], [])  # type: ignore[arg-type]
    check_cache(Options(tmp_path, window, 3 * gib), [shards], [])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "expected"),
    [("memory://nowhere", "manifest.json cannot be read: it is missing"), ("s3://a:b@c/d", "s3://c/d with a user")],
)
def test_addresses_that_hold_no_set(given: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=expected) as error:
        shard_folder(given, CacheConfig(str(tmp_path), 1.0))
    assert "a:b" not in str(error.value)


def test_the_losses_are_those_of_shards_on_a_disk(source: Path, tmp_path: Path) -> None:
    """Bit by bit, here with a window."""
    rows = []
    for name, folder in (("here", str(source)), ("there", f"file://{source}")):
        options = (f"data.dir={folder}", f"run_dir={tmp_path / name}", f"data.cache_dir={tmp_path / 'cache'}")
        done = run_module("bert_pretrain.pretrain", *TEST_RECIPE, *options, "data.window=40")
        assert done.returncode == 0, done.stderr
        found = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        rows.append([{key: value for key, value in row.items() if "loss" in key} for row in found])
        assert f"dir: {folder}" in (tmp_path / name / "config.yaml").read_text()
    assert rows[0] == rows[1]
    assert any("eval_mlm_loss" in row for row in rows[0])
    assert len(cached(tmp_path / "cache")) == len(SIZES) + 1
