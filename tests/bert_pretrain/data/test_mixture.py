"""Mixtures of sets: shares by hand, and the contract of the sample order."""

import json
import shutil
from collections import Counter
from math import inf
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bert_pretrain.config import PretrainConfig, resolved_yaml
from bert_pretrain.data.batch_plan import BatchPlan
from bert_pretrain.data.loader import TrainingData
from bert_pretrain.data.mixture import count_tokens_of, describe_mixture, open_data_sets, quotas_of, sample_order
from bert_pretrain.data.options import DataConfig
from bert_pretrain.data.sample_order import PERIOD, MixedOrder, SampleOrder
from bert_pretrain.data.shard_directory import write_manifest
from bert_pretrain.data.shards import write_shard
from bert_pretrain.distributed.preemption import StopRequest
from bert_pretrain.distributed.world import open_world
from bert_pretrain.errors import ConfigError
from bert_pretrain.options.config_loading import load_config
from bert_pretrain.plan import run as plan
from bert_pretrain.run import pretrain
from bert_pretrain.same_run import check_same_run
from tests.bert_pretrain.data.test_loader import config, rows
from tests.bert_pretrain.training.test_trainer import trainer_for
from tests.conftest import TEST_RECIPE, VOCAB_SIZE, header, random_arrays


def make_set(directory: Path, samples: int, seed: int, **changes: object) -> Path:
    """Samples that no other set has: the sample's number and ``seed`` are their first two tokens."""
    directory.mkdir(parents=True)
    found = []
    for split, count in (("train", samples), ("heldout", 5)):
        arrays = random_arrays(np.random.default_rng(seed), count)
        arrays["input_ids"][:, 1], arrays["input_ids"][:, 2] = seed, np.arange(count) % VOCAB_SIZE
        arrays["segment_ids"][:, :] = (np.arange(count)[:, None] >> np.arange(16)) & 1
        found.append(write_shard(directory / f"{split}.hdf5", arrays, header(split, **changes)))
    write_manifest(directory, {"shards": found})
    return directory


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    for seed, samples in enumerate((100, 40, 12)):
        make_set(folder / f"{seed}", samples, seed + 20)
    return folder


def mixed(sets: Path, **changes: object) -> DataConfig:
    mix = {"b": str(sets / "1"), "c": str(sets / "2")}
    return config(sets / "0", mix=mix, **{"mix_weights": {"c": 2.0}, **changes})


def training_data(options: DataConfig, batch: int, world: int = 1, rank: int = 0, micro: int = 7) -> TrainingData:
    shards = open_data_sets(options, "train", VOCAB_SIZE)
    assert shards is not None
    return TrainingData(shards, sample_order(options, shards, 9), BatchPlan(batch, micro, world), rank, None, 3, False)


def test_shares_by_hand() -> None:
    assert quotas_of([3000, 1000], [3000, 1000], [1, 1], 1.0) == (49152, 16384)  # 3 : 1
    assert quotas_of([3000, 1000], [3000, 1000], [1, 3], 1.0) == (32768, 32768)  # 3 : 3
    assert quotas_of([9000, 1000], [9000, 1000], [1, 1], 2.0) == (49152, 16384)  # sqrt(9) : 1
    assert quotas_of([8000, 1000], [8000, 1000], [1, 2], 3.0) == (32768, 32768)  # 2 : 2
    assert quotas_of([10**9, 7], [10**9, 7], [1, 3], inf) == (16384, 49152)  # 1 : 3, whatever the size
    assert quotas_of([1, 1, 1], [1, 1, 1], [1, 1, 1], 1.0) == (21846, 21845, 21845)  # 65536 = 3 * 21845 + 1
    # XLM-R's exponent 0.3, of 2^40 and 2^10 samples: 2^12 : 2^3 = 512 : 1; 65536 * 512/513 = 65408.25
    assert quotas_of([2**40, 2**10], [2**40, 2**10], [1, 1], 1 / 0.3) == (65408, 128)


def test_shares_by_tokens_by_hand() -> None:
    """1,000 samples of 60 tokens and 1,000 of 20. By weight alone, half of the tokens are of each: 1 : 3 samples."""
    assert quotas_of([1000, 1000], [60_000, 20_000], [1, 1], inf) == (16384, 49152)
    assert quotas_of([1000, 1000], [60_000, 20_000], [1, 1], 1.0) == (32768, 32768)  # each once
    # T = 2, 90,000 and 10,000 tokens in 900 and 50 samples, of 100 and 200 tokens: tokens 3 : 1, samples 6 : 1
    assert quotas_of([900, 50], [90_000, 10_000], [1, 1], 2.0) == (56174, 9362)


@pytest.mark.parametrize("seed", range(20))
def test_quotas_are_within_one_of_the_exact_shares(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 10**9, rng.integers(2, 30)).tolist()
    weights = rng.uniform(0.1, 10, len(sizes)).tolist()
    quotas = quotas_of(sizes, sizes, weights, temperature := float(rng.uniform(0.5, 10)))
    exact = np.array(weights) * np.array(sizes) ** (1 / temperature)
    assert sum(quotas) == PERIOD
    assert np.abs(quotas - exact / exact.sum() * PERIOD).max() < 1


def test_every_period_has_the_quota_of_each_part_and_their_streams_go_on() -> None:
    order = MixedOrder(3, (SampleOrder(1, 100, 8), SampleOrder(2, 40, 8)), (PERIOD - 1000, 1000))
    for period in (0, 1, 10**9):
        start = period * PERIOD
        assert order.positions(start).tolist() == [period * (PERIOD - 1000), period * 1000]
    found, last = [], order.positions(PERIOD - 500)
    for part in order.slices(PERIOD - 500, PERIOD + 4000):  # over the end of a period
        assert part.starts.tolist() == last.tolist()
        last = part.stops
        assert sorted(part.rows) == list(range(int((part.stops - part.starts).sum())))
        found.append(part.rows >= part.stops[0] - part.starts[0])
    is_second = np.concatenate(found)
    assert len(is_second) == 4500
    assert is_second.sum() == order.positions(PERIOD + 4000)[1] - order.positions(PERIOD - 500)[1]
    assert 40 < is_second.sum() < 100  # 69 on average
    gaps = np.diff(np.flatnonzero(is_second))
    assert gaps.min() < 20 < gaps.max()  # at random places


@pytest.mark.parametrize("micro", [3, 100])
def test_any_number_of_ranks_and_any_cut_read_the_same_samples(sets: Path, micro: int) -> None:
    whole = training_data(mixed(sets), 50)
    for step in (0, 7, 2000):  # 2000 * 50 is in the second period
        expected = rows(list(whole.micro_batches(step)))
        parts = [training_data(mixed(sets), 50, 3, rank, micro) for rank in range(3)]
        assert [row for part in parts for row in rows(list(part.micro_batches(step)))] == expected
        assert sum(part.counts(step).samples for part in parts) == 50


def test_each_sample_of_a_part_comes_once_in_its_epoch(sets: Path) -> None:
    """Quotas are 100 : 40 : 24 (weight 2 of 12 samples) of 164: in 1,640 samples c is seen 20 times, b 10 times."""
    data = training_data(mixed(sets), 164)
    seen = Counter(row for step in range(10) for row in rows(list(data.micro_batches(step))))
    by_part: dict[int, list[int]] = {20: [], 21: [], 22: []}
    for row, count in seen.items():
        by_part[int(np.frombuffer(row, np.int64)[1])].append(count)
    assert [len(counts) for counts in by_part.values()] == [100, 40, 12]
    for counts in by_part.values():
        assert max(counts) - min(counts) <= 1
    for counts, mean in zip(by_part.values(), (10, 10, 20), strict=True):
        assert abs(np.mean(counts) / mean - 1) < 0.2


def test_resuming_needs_the_step_only(sets: Path) -> None:
    data = training_data(mixed(sets, mix_temperature=3.0), 32)
    walked = [rows(list(data.micro_batches(step))) for step in range(6)]
    assert rows(list(training_data(mixed(sets, mix_temperature=3.0), 32).micro_batches(5))) == walked[5]


def test_masks_are_drawn_by_the_number_of_the_sample_in_the_whole_mixture(sets: Path) -> None:
    numbers: dict[int, set[int]] = {20: set(), 21: set(), 22: set()}

    def masking(arrays: dict, epoch: int, samples: np.ndarray) -> dict:
        numbers[int(arrays["input_ids"][0, 1])] |= set(samples.tolist())
        return arrays

    data = training_data(mixed(sets), 164)
    data.masking = masking
    data.__post_init__()
    for step in range(4):
        list(data.micro_batches(step))
    assert numbers == {20: set(range(100)), 21: set(range(100, 140)), 22: set(range(140, 152))}


def test_sets_by_tokens_and_the_rows_of_the_plan(sets: Path) -> None:
    options = mixed(sets, mix_by="tokens", mix_temperature=inf)
    shards, told = open_data_sets(options, "train", VOCAB_SIZE), []
    tokens = [count_tokens_of(part, told.append) for part in shards.sets]
    assert tokens == [int(part.read(0, part.samples)["input_mask"].sum()) for part in shards.sets]
    assert len(told) == 3
    order = sample_order(options, shards, 1)
    wanted = np.array([1, 1, 2]) * np.array([100, 40, 12]) / np.array(tokens)  # samples a share of tokens
    np.testing.assert_allclose(np.array(order.quotas) / PERIOD, wanted / wanted.sum(), atol=1 / PERIOD)
    rows = describe_mixture(shards, order, PERIOD)
    assert [name for name, _ in rows] == ["mixture", "", ""]
    assert rows[1][1] == (
        f"{order.quotas[1] / PERIOD:.2%} of the samples from data.mix.b: {order.quotas[1]:,} = "
        f"{order.quotas[1] / 40:,.2f} epochs of 40"
    )
    length = {"32": {"train": {"samples": 40, "real_tokens": 7}}}
    shard = shards.sets[1].paths[0].parent
    manifest = json.loads((shard / "manifest.json").read_text())
    (shard / "manifest.json").write_text(json.dumps({**manifest, "sequence_length": 32, "stages": [length]}))
    try:
        assert count_tokens_of(shards.sets[1], told.append) == 7
        assert len(told) == 3
    finally:
        write_manifest(shard, manifest)


def test_one_set_has_the_order_that_it_had(sets: Path) -> None:
    shards = open_data_sets(config(sets / "0"), "train", VOCAB_SIZE)
    assert sample_order(config(sets / "0"), shards, 5) == SampleOrder(5, 100, 8)
    assert describe_mixture(shards, SampleOrder(5, 100, 8), 7) == []


def test_held_out_samples_of_all_sets(sets: Path) -> None:
    held = open_data_sets(mixed(sets), "heldout", VOCAB_SIZE)
    assert held.samples == 15
    assert held.read(0, 15)["input_ids"][:, 1].tolist() == [20] * 5 + [21] * 5 + [22] * 5
    assert held.fingerprint != open_data_sets(config(sets / "0"), "heldout", VOCAB_SIZE).fingerprint


def test_sets_that_do_not_fit(sets: Path, tmp_path: Path) -> None:
    other = make_set(tmp_path / "other", 10, 3, vocab_hash="w")
    with pytest.raises(ConfigError, match=r"data\.mix\.b .*other was made with another vocabulary than data\.dir"):
        open_data_sets(config(sets / "0", mix={"b": str(other)}), "train", VOCAB_SIZE)
    with pytest.raises(ConfigError, match="nowhere"):
        open_data_sets(config(sets / "0", mix={"b": "nowhere"}), "train", VOCAB_SIZE)
    small = mixed(sets, mix_weights={"b": 1e-7})
    with pytest.raises(ConfigError, match=r"data\.mix\.b has a share of the mixture below 1/65536"):
        sample_order(small, open_data_sets(small, "train", VOCAB_SIZE), 1)
    for name, value in (("mix_temperature", 0.0), ("mix_by", "words")):
        with pytest.raises(ConfigError, match=f"data.{name}"):
            config(sets / "0", **{name: value})
    with pytest.raises(ConfigError, match=r"data\.mix_weights\.b is 0\.0"):
        mixed(sets, mix_weights={"b": 0.0})
    with pytest.raises(ConfigError, match=r"data\.mix_weights is 'd'; allowed: the names of the sets: dir, b, c"):
        mixed(sets, mix_weights={"d": 1.0})


def test_a_run_on_a_mixture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says shares and epochs before it starts, as the plan does; stopped and resumed it is bitwise the same."""
    for seed, samples in enumerate((50, 20)):
        make_set(tmp_path / f"{seed}", samples, seed + 20)
    mix = (f"data.mix.b={tmp_path / '1'}", "data.mix_temperature=inf", "data.mix_weights.b=3")
    whole = trainer_for(tmp_path / "whole", tmp_path / "0", *mix)
    told = capsys.readouterr().out
    assert isinstance(whole.data.order, MixedOrder)
    used = whole.data.order.positions(72).tolist()  # six steps of twelve samples
    assert whole.data.order.quotas == (16384, 49152)
    expected = [
        f"  mixture       25.00% of the samples from data.dir: {used[0]} = {used[0] / 50:.2f} epochs of 50",
        f"                75.00% of the samples from data.mix.b: {used[1]} = {used[1] / 20:.2f} epochs of 20",
    ]
    assert all(line in told.splitlines() for line in expected)
    plan.main([*TEST_RECIPE, f"data.dir={tmp_path / '0'}", f"run_dir={tmp_path / 'no'}", *mix])
    planned = capsys.readouterr().out.splitlines()
    assert all(line in planned for line in expected)
    whole.run()
    trainer_for(tmp_path / "parts", tmp_path / "0", *mix).run()
    shutil.rmtree(tmp_path / "parts/checkpoints/step_00000006")
    resumed = trainer_for(tmp_path / "parts", tmp_path / "0", *mix)
    assert resumed.progress.step == 3
    resumed.run()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    with pytest.raises(ConfigError, match="was trained on other shards than those"):
        trainer_for(tmp_path / "parts", tmp_path / "0", *mix[:1], f"data.mix.c={tmp_path / '1'}")


def test_a_run_keeps_the_order_of_its_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Resumed, branched off and planned with the sets named in another order, it is bitwise the same run."""
    for seed, samples in enumerate((50, 20, 30)):
        make_set(tmp_path / f"{seed}", samples, seed + 20)
    b, c = (f"data.mix.{name}={tmp_path / str(number)}" for name, number in (("b", 1), ("c", 2)))

    def train(name: str, *words: str) -> Path:
        config = load_config(
            "pretrain",
            [*TEST_RECIPE, f"data.dir={tmp_path / '0'}", f"run_dir={tmp_path / name}", *words],
            PretrainConfig,
        )
        with open_world("cpu") as world:
            pretrain(config, world, StopRequest())
        return tmp_path / name / "checkpoints"

    steps = train("whole", b, c)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts/checkpoints/step_00000006")
    keep = f"init_from={steps / 'step_00000003'}", "init_progress=keep", "init_moments=keep"
    expected = load_file(steps / "step_00000006/model/model.safetensors")
    for others in (train("parts", c, b), train("branch", c, b, *keep)):
        found = load_file(others / "step_00000006/model/model.safetensors")
        assert all(torch.equal(value, found[name]) for name, value in expected.items())
        stored = (others / "step_00000006/config.yaml").read_text()
        assert stored.index("    b: ") < stored.index("    c: ")
    capsys.readouterr()
    plan.main([*TEST_RECIPE, f"data.dir={tmp_path / '0'}", f"run_dir={tmp_path / 'whole'}", c, b])
    planned = capsys.readouterr().out
    assert planned.index("from data.mix.b") < planned.index("from data.mix.c")


def test_which_changes_of_a_mixture_are_another_run(sets: Path, tmp_path: Path) -> None:
    words = [*TEST_RECIPE, f"data.dir={sets / '0'}", f"run_dir={tmp_path}"]
    before = resolved_yaml(load_config("pretrain", [*words, "data.mix.b=here"], PretrainConfig))
    moved = resolved_yaml(load_config("pretrain", [*words, "data.mix.b=there"], PretrainConfig))
    check_same_run(moved, before, "run")
    for change, name in (("data.mix_weights.b=2", "data.mix_weights.b"), ("data.mix_by=tokens", "data.mix_by")):
        other = resolved_yaml(load_config("pretrain", [*words, "data.mix.b=here", change], PretrainConfig))
        with pytest.raises(ConfigError, match=name):
            check_same_run(other, before, "run")
    plain = resolved_yaml(load_config("pretrain", words, PretrainConfig))
    old = "\n".join(line for line in plain.splitlines() if "mix" not in line)
    check_same_run(plain, old, "run")  # of a version without mixtures
    with pytest.raises(ConfigError, match=r"data\.mix"):
        check_same_run(before, plain, "run")
