import random
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForPreTraining, BertConfig, BertForPreTraining

from bert_pretrain.checkpoint.directories import resolve_checkpoint
from bert_pretrain.checkpoint.files import find_fault
from bert_pretrain.checkpoint.store import (
    CheckpointStore,
    Progress,
    load_optimizer_state,
    load_progress,
)
from bert_pretrain.errors import ConfigError


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
    return store.newest_valid(messages.append), messages


def test_save_and_load(tmp_path: Path) -> None:
    path, messages = newest(store_with(tmp_path, (3,)))
    assert path is not None
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
    (tmp_path / "progress.json").write_text('{"step": 3, "attempts": 4, "watch": {"mean": 2.5}}')
    assert load_progress(tmp_path) == Progress(step=3, attempts=4, spike_detector={"mean": 2.5})
