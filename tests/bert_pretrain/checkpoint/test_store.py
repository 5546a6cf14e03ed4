import errno
import json
import os
import random
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import AutoModelForPreTraining, BertConfig, BertForPreTraining

from bert_pretrain.checkpoint import files
from bert_pretrain.checkpoint.files import find_fault
from bert_pretrain.checkpoint.find import newest_valid, resolve_checkpoint
from bert_pretrain.checkpoint.store import (
    CheckpointStore,
    Progress,
    load_optimizer_state,
    load_progress,
    restore,
)
from bert_pretrain.errors import ConfigError
from bert_pretrain.model.bert import PretrainingModel
from bert_pretrain.model.options import PrecisionConfig, SpeedConfig
from bert_pretrain.model.precision import MixedPrecision
from bert_pretrain.optim import NVLamb
from tests.conftest import assert_as_new_files


def small_bert(seed: int = 0) -> BertForPreTraining:
    torch.manual_seed(seed)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    return BertForPreTraining(BertConfig(vocab_size=20, max_position_embeddings=8, **shape))


def store_with(directory: Path, steps: tuple[int, ...], keep: int = 10) -> CheckpointStore:
    store = CheckpointStore(directory / "checkpoints", keep, None)
    for step in steps:
        state = {"state": {0: {"step": torch.tensor(float(step))}}, "param_groups": []}
        store.save(small_bert(step), state, Progress(step=step, attempts=step + 1, samples_seen=7 * step), "seed: 1\n")
    return store


def newest(store: CheckpointStore) -> tuple[Path | None, list[str]]:
    messages: list[str] = []
    return newest_valid(store.directory, messages.append), messages


def test_save_and_load(tmp_path: Path) -> None:
    path, messages = newest(store_with(tmp_path, (3,)))
    assert path is not None
    assert_as_new_files(path)
    assert messages == []
    assert load_progress(path) == Progress(step=3, attempts=4, samples_seen=21)
    assert load_optimizer_state(path, torch.device("cpu"))["state"][0]["step"] == 3
    model, report = AutoModelForPreTraining.from_pretrained(path / "model", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = small_bert(3).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_only_tokenizer_files_are_copied_from_its_folder(tmp_path: Path) -> None:
    """If the folder holds a model too, its weights must not overwrite the trained ones."""
    small_bert(seed=99).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "vocab.txt").write_text("[PAD]\n")
    store = CheckpointStore(tmp_path / "checkpoints", 1, tmp_path / "other")
    path = store.save(small_bert(1), {"state": {}, "param_groups": []}, Progress(step=1), "")
    assert (path / "model" / "vocab.txt").exists()
    saved = AutoModelForPreTraining.from_pretrained(path / "model").state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in small_bert(1).state_dict().items())


def test_only_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    store = store_with(tmp_path, (1, 2, 3, 4), keep=2)
    assert [path.name for path in store.all()] == ["step_00000003", "step_00000004"]
    assert not list((tmp_path / "checkpoints").glob(".*"))


@pytest.mark.parametrize("seed", range(20))
def test_damage_anywhere_is_found_and_the_older_checkpoint_used(tmp_path: Path, seed: int) -> None:
    store = store_with(tmp_path, (1, 2))
    rng = random.Random(seed)
    damaged = store.all()[-1]
    victim = rng.choice(sorted(file for file in damaged.rglob("*") if file.is_file()))
    content = bytearray(victim.read_bytes())
    offset = rng.randrange(len(content))
    if seed % 3 == 0:
        victim.unlink()
    elif seed % 3 == 1:
        victim.write_bytes(content[:offset])
    else:
        content[offset] ^= 1 << rng.randrange(8)
        victim.write_bytes(content)
    path, messages = newest(store)
    assert path is not None
    assert path.name == "step_00000001"
    assert len(messages) == 1
    assert "step_00000002 is skipped" in messages[0]
    assert damaged.exists()


def test_a_damaged_checkpoint_is_renamed_when_its_step_is_saved_again_and_never_deleted(tmp_path: Path) -> None:
    store = store_with(tmp_path, (1, 2), keep=1)
    (store.all()[-1] / "progress.json").write_text("{}")
    store_with(tmp_path, (2, 3), keep=1)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_00000002.damaged-1", "step_00000003"]


def test_a_partial_directory_is_ignored(tmp_path: Path) -> None:
    store = store_with(tmp_path, (1,))
    shutil.copytree(store.all()[0], tmp_path / "checkpoints" / ".step_00000002.partial")
    path, messages = newest(store)
    assert path == store.all()[0]
    assert messages == []


def test_init_from_takes_a_run_or_a_checkpoint(tmp_path: Path) -> None:
    store = store_with(tmp_path, (1, 2))
    assert resolve_checkpoint(tmp_path, "init_from", print) == store.all()[1]
    assert resolve_checkpoint(store.all()[0], "init_from", print) == store.all()[0]
    with pytest.raises(ConfigError, match=r"init_from is .*no checkpoint"):
        resolve_checkpoint(tmp_path / "nowhere", "init_from", print)
    (store.all()[0] / "optimizer.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match="damaged"):
        resolve_checkpoint(store.all()[0], "init_from", print)


def test_init_from_reports_the_damaged_checkpoint_that_it_skips(tmp_path: Path) -> None:
    store = store_with(tmp_path, (1, 2))
    (store.all()[1] / "optimizer.pt").write_bytes(b"")
    messages: list[str] = []
    assert resolve_checkpoint(tmp_path, "init_from", messages.append) == store.all()[0]
    assert len(messages) == 1
    assert "step_00000002 is skipped: optimizer.pt" in messages[0]


def test_an_error_of_a_library_is_reported_with_the_free_disk_space(tmp_path: Path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", fail)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 250_000))
    with pytest.raises(OSError, match=r"unexpected pos 64 vs 0; 0\.2 MB are free there"):
        store_with(tmp_path, (1,))
    assert not list((tmp_path / "checkpoints").iterdir())


def test_find_fault_reports_damaged_checksums(tmp_path: Path) -> None:
    path = store_with(tmp_path, (1,)).all()[0]
    for content in ("", "[]", "3", '{"optimizer.pt": 1}'):
        (path / "checksums.json").write_text(content)
        assert find_fault(path) is not None


def test_the_spike_detector_s_name_until_version_0_1_is_read(tmp_path: Path) -> None:
    values = {"step": 3, "attempts": 4, "samples_seen": 0, "data_fingerprint": "", "watch": {"mean": 2.5}}
    (tmp_path / "progress.json").write_text(json.dumps(values))
    assert load_progress(tmp_path) == Progress(step=3, attempts=4, spike_detector={"mean": 2.5})


def steps(store: CheckpointStore) -> list[int]:
    return [int(path.name[5:]) for path in store.all()]


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_ones_do_not_count(tmp_path: Path, keep: int) -> None:
    """A run that goes on before damaged checkpoints keeps what it writes: their steps are larger."""
    store = store_with(tmp_path, (1, 5, 6))
    for path in store.all()[1:]:
        (path / "optimizer.pt").write_bytes(b"")
        os.utime(path / "optimizer.pt", (2e9, 2e9))  # later than the checksums, whatever the clock's step
    store.keep_last = keep
    store.save(small_bert(), {"state": {}}, Progress(step=2), "seed: 1\n")
    assert steps(store) == ([1] if keep == 2 else []) + [2, 5, 6]
    assert find_fault(store.directory / "step_00000002") is None


def test_the_one_just_written_is_kept_beside_newer_valid_ones(tmp_path: Path) -> None:
    store = store_with(tmp_path, (1, 5, 6))
    store.keep_last = 2
    store.save(small_bert(), {"state": {}}, Progress(step=2), "seed: 1\n")
    assert steps(store) == [2, 6]


def test_old_checkpoints_are_not_read_before_they_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, read = store_with(tmp_path, (1, 2)), list[Path]()
    original = files._sha256
    monkeypatch.setattr(files, "_sha256", lambda path, throttle: (read.append(path), original(path, throttle))[1])
    store.keep_last = 1
    store.save(small_bert(), {"state": {}}, Progress(step=3), "seed: 1\n")
    assert steps(store) == [3]
    assert {path.relative_to(store.directory).parts[0] for path in read} == {".step_00000003.partial"}


def test_an_old_checkpoint_that_is_a_link_is_unlinked_and_its_files_are_kept(tmp_path: Path) -> None:
    messages: list[str] = []
    store = CheckpointStore(tmp_path / "checkpoints", 1, None, report=messages.append)
    first = store.save(small_bert(), {"state": {}}, Progress(step=1), "seed: 1\n")
    first.rename(tmp_path / "far")
    first.symlink_to(tmp_path / "far")
    store.save(small_bert(), {"state": {}}, Progress(step=2), "seed: 1\n")
    assert steps(store) == [2]
    assert find_fault(tmp_path / "far") is None
    assert messages == [f"old checkpoint {first} was a link: it is removed, and {tmp_path / 'far'} is kept"]


def test_an_old_checkpoint_that_cannot_be_removed_fails_no_save(tmp_path: Path, monkeypatch) -> None:
    messages: list[str] = []
    store = CheckpointStore(tmp_path / "checkpoints", 1, None, report=messages.append)
    store.save(small_bert(), {"state": {}}, Progress(step=1), "seed: 1\n")
    rmtree = shutil.rmtree

    def refuse(path: Path, ignore_errors: bool = False) -> None:
        if path.name == "step_00000001":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        rmtree(path, ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    path = store.save(small_bert(), {"state": {}}, Progress(step=2), "seed: 1\n")
    assert find_fault(path) is None
    assert len(messages) == 1
    assert "step_00000001 cannot be removed ([Errno 13]" in messages[0]


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), errno.ENOSPC),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."), errno.ENOMEM),
        (MemoryError(), errno.ENOMEM),
        (PermissionError(errno.EACCES, "Permission denied"), errno.EACCES),
        (RuntimeError("a bug"), None),
        (TypeError("a bug"), None),
    ],
)
def test_causes_of_a_failed_save_are_told_apart(
    tmp_path: Path, monkeypatch, error: Exception, number: int | None
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError if number else type(error)) as raised:
        store_with(tmp_path, (1,))
    assert getattr(raised.value, "errno", None) == number
    assert not list((tmp_path / "checkpoints").iterdir())


def test_progress_of_a_later_version_and_a_damaged_one_are_told_by_name(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    path.write_text('{"format_version": 2, "step": 3, "unknown": 1}')
    with pytest.raises(ConfigError, match=r"progress.json has format 2, .* a later version wrote it"):
        load_progress(tmp_path)
    for content, mentions in (
        ('{"step": 3, "other": 1}', "another version"),
        ("{", "is damaged"),
        ("[]", "is damaged"),
    ):
        path.write_text(content)
        with pytest.raises(ConfigError, match=rf"progress.json .*{mentions}"):
            load_progress(tmp_path)


def test_a_run_whose_checkpoints_are_all_damaged_is_told_as_such(tmp_path: Path) -> None:
    (store_with(tmp_path, (1,)).all()[0] / "optimizer.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"init_from is .* all damaged \(step_00000001\); give a copy"):
        resolve_checkpoint(tmp_path, "init_from", print)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_fingerprint": None}, "data_fingerprint is None"),
        ({"attempts": "x"}, "attempts is 'x'"),
        ({"samples_seen": -1}, "samples_seen is -1"),
        ({"spike_detector": [3]}, r"spike_detector is \[3\]"),
        ({"bookmarks": {}}, "bookmarks is {}"),
        ({"precision": 1.0}, "precision is 1.0"),
    ],
)
def test_a_progress_that_is_none_is_damaged(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    values = asdict(Progress(step=3)) | changes
    (tmp_path / "progress.json").write_text(
        json.dumps({key: value for key, value in values.items() if value is not None})
    )
    with pytest.raises(ConfigError, match=f"progress.json is damaged .{message}"):
        load_progress(tmp_path)


def restore_small(path: Path) -> None:
    speed = SpeedConfig(*[False] * 6, pad_vocabulary=False, compile=False, cuda_graphs=False)
    model, cpu = PretrainingModel(small_bert(), speed), torch.device("cpu")
    precision = MixedPrecision(PrecisionConfig("fp32", 1.0, 1, tf32=False, deterministic=False), cpu)
    restore(path, model, NVLamb(model.parameters(), lr=0.1), precision, cpu)


@pytest.mark.parametrize("content", [b"junk", b"", [1, 2], {}, {"state": {}, "param_groups": [{"params": []}]}])
def test_an_optimizer_state_that_is_none_is_told_by_its_file(tmp_path: Path, content: object) -> None:
    """Its checksums are right: a script wrote it."""
    (path,) = store_with(tmp_path, (3,)).all()
    if isinstance(content, bytes):
        (path / "optimizer.pt").write_bytes(content)
    else:
        torch.save(content, path / "optimizer.pt")
    with pytest.raises(ConfigError, match=f"{path}/optimizer.pt"):
        restore_small(path)


def test_weights_that_are_missing_are_not_drawn_at_random(tmp_path: Path) -> None:
    (path,) = store_with(tmp_path, (3,)).all()
    save_file({}, path / "model/model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"model cannot be loaded .it lacks weights, such as bert\."):
        restore_small(path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_weights_that_are_none_are_told_by_their_folder(tmp_path: Path, name: str) -> None:
    (path,) = store_with(tmp_path, (3,)).all()
    (path / "model" / name).write_bytes(b"junk")
    with pytest.raises(ConfigError, match=f"{path}/model cannot be loaded"):
        restore_small(path)
