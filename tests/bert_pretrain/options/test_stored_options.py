"""What a run stored: a later version's files and damaged ones are told by name; an earlier version's are read."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from bert_pretrain.config import PretrainConfig, resolved_yaml
from bert_pretrain.errors import ConfigError
from bert_pretrain.options.config_loading import load_config
from bert_pretrain.options.stored_options import flat, read_options, read_progress
from bert_pretrain.same_run import check_run_dir, check_same_run
from tests.conftest import ROOT, TEST_RECIPE

OLD = ROOT / "tests/fixtures/run_56623bf/run/config.yaml"


def config_for(run_dir: Path, *words: str) -> PretrainConfig:
    return load_config("pretrain", [*TEST_RECIPE, f"run_dir={run_dir}", *words], PretrainConfig)


NO_STEPS = b"model: {}\nbatch: {}\nschedule: {}\ncheckpoint: {}\nlogging: {}\n"


@pytest.mark.parametrize(
    "content", [b"", b"a: [", b"\xff\xfe", b"- 1", b"word", b"a: ${", b"seed: 1\nmodel:\n  hid", NO_STEPS]
)
def test_a_damaged_config_is_told_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    for read in (read_options, lambda _: check_run_dir(config_for(tmp_path))):
        with pytest.raises(ConfigError, match=rf"{tmp_path}/config.yaml is damaged .*; put a copy of ") as error:
            read(tmp_path / "config.yaml")
        assert "\n" not in str(error.value)


def test_files_of_a_later_version_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(resolved_yaml(config_for(tmp_path)).replace("version: 1", "version: 2"))
    with pytest.raises(ConfigError, match=r"config.yaml has format 2, .* up to format 1: a later version wrote it"):
        check_run_dir(config_for(tmp_path))
    (tmp_path / "progress.json").write_text('{"format_version": "x", "step": 1}')
    with pytest.raises(ConfigError, match=r"progress\.json has format 'x'"):
        read_progress(tmp_path / "progress.json")


def test_options_that_an_earlier_run_does_not_state_have_their_defaults() -> None:
    """Every option of today, but the recipe's, is one of that run, may change, or has a value for earlier runs."""
    old = OmegaConf.load(OLD)
    config = load_config("pretrain", ["recipe=demo"], PretrainConfig)
    now = OmegaConf.create(resolved_yaml(config))
    stated = {f"{part}.{name}" for part, values in old.items() if OmegaConf.is_dict(values) for name in values}
    new = {
        f"{part}.{name}": value
        for part, values in now.items()
        if OmegaConf.is_dict(values)
        for name, value in values.items()
        if f"{part}.{name}" not in stated
    }
    assert new, "there are options that are newer than that run"
    today = OmegaConf.merge(old, OmegaConf.create())
    for name, value in new.items():
        OmegaConf.update(today, name, value)
    check_same_run(OmegaConf.to_yaml(today), OLD.read_text(), "run")


def test_a_run_that_stated_no_packing_goes_on_with_the_default_of_today(tmp_path: Path) -> None:
    now = config_for(tmp_path)
    assert now.speed.packing is None
    assert now.speed.on(torch.device("cpu")).packing is False, "bitwise the same on a CPU"
    before = resolved_yaml(now).replace("packing: null", "packing: false")
    assert before != resolved_yaml(now)
    check_same_run(resolved_yaml(now), before, "run")


def test_a_run_without_a_checkpoint_begins_from_the_same_weights(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(resolved_yaml(config_for(tmp_path, "init_from=a", "init_moments=reset")))
    check_run_dir(config_for(tmp_path, f"init_from={Path('a').resolve()}"))
    with pytest.raises(ConfigError, match=r"no checkpoint yet.*init_from was 'a' and is None; give the same"):
        check_run_dir(config_for(tmp_path))
    with pytest.raises(ConfigError, match="init_moments was 'reset' and is 'keep'"):
        check_run_dir(config_for(tmp_path, "init_from=a", "init_moments=keep"))
    (tmp_path / "checkpoints/step_00000003").mkdir(parents=True)
    check_run_dir(config_for(tmp_path, "init_from=b"))


def test_what_was_made_before_the_first_run_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "checkpoints").symlink_to(tmp_path / "far")
    (tmp_path / "metrics.jsonl").touch()
    check_run_dir(config_for(tmp_path))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ConfigError, match=r"holds a run without a config\.yaml"):
        check_run_dir(config_for(tmp_path))
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "far/step_00000003").mkdir()
    with pytest.raises(ConfigError, match=r"holds a run without a config\.yaml"):
        check_run_dir(config_for(tmp_path))


def test_nested_options_by_their_full_names() -> None:
    assert flat({"a": {"b": 1, "c": {"d": None}}, "e": [2]}) == {"a.b": 1, "a.c.d": None, "e": [2]}
