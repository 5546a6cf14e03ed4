"""Checks that ``run_dir``, or the checkpoint that a run branches from, belongs to a run with the same options."""

import re
from dataclasses import MISSING, asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf

from bert_pretrain.checkpoint.find import RECORD, checkpoints_in, step_of
from bert_pretrain.config import PretrainConfig, resolved_yaml
from bert_pretrain.data.ready_made_options import READY_MADE_ONLY
from bert_pretrain.errors import ConfigError
from bert_pretrain.files.file_system import replace_file
from bert_pretrain.optim.options import OF_SHAPES, ScheduleConfig
from bert_pretrain.optim.schedule import changed_past
from bert_pretrain.options.stored_options import flat, parse_options, read_options, read_progress, read_text
from bert_pretrain.training.metrics import read_rows

# Options that may differ when a run is resumed: they change neither the samples of a step nor, except for rounding, its
# arithmetic.
_MAY_CHANGE_ON_RESUME = (
    "run_dir",
    "device",
    "init_from",
    "init_moments",
    "init_positions",
    "init_progress",
    "batch.micro_batch_size",
    "data.dir",  # the shards are compared by their fingerprint
    "data.tokenizer",
    "data.check",
    "data.prefetch",
    "data.cache_dir",
    "data.cache_gib",
    "model.attention",
    "speed.compile",
    "speed.cuda_graphs",
    "speed.fused_loss",
    "speed.packing",
    "speed.pad_vocabulary",
    "precision.tf32",
    "precision.deterministic",
    "optimizer.kernel",
    "optimizer.others.kernel",
    "communication.bucket_mb",
    "communication.timeout_seconds",
    "optimizer.sharded",
    "logging",
    "training",
    "numerics",
    "checkpoint",
)

Config = TypeVar("Config", bound=PretrainConfig)
_SOURCE = ("init_from", "init_moments", "init_positions", "init_progress")
_NEW_OPTIONS: dict[str, Any] = {
    "init_positions": None,
    "init_progress": "reset",
    "data.window": None,
    "model.next_sentence": True,
    "data.mask_share": None,
    "data.random_share": None,
}
"""Options that runs of earlier versions do not state, and what those runs did, as far as it is not their default in a
dataclass. Every new option that may not change on resume stands in one of the two."""


def check_run_dir(config: PretrainConfig, may_extend: bool = True, advice: str = "") -> None:
    """Raise ``ConfigError`` if ``run_dir`` holds another run than ``config``, or a run without a ``config.yaml``.

    With ``may_extend`` the schedule may differ in the steps to come. A new branch is compared with the run of its
    checkpoint. ``advice``: what to do about another run; empty: what a user who gave ``run_dir`` can do.
    """
    run_dir = Path(config.run_dir)
    stored = run_dir / "config.yaml"
    metrics = run_dir / "metrics.jsonl"
    now = resolved_yaml(config)
    for path in (stored, metrics, run_dir / RECORD):
        if path.is_dir():
            raise ConfigError(f"{path} is a directory, but a run has a file there; put the directory elsewhere")
    if stored.is_file():
        before = read_options(stored)
        applied = steps_done(run_dir) if may_extend else None
        check_same_run(now, read_text(stored), config.run_dir, applied, advice=advice)
        if newest_by_name(run_dir) == run_dir:
            _check_same_source(config, before)
    elif checkpoints_in(run_dir / "checkpoints") or (metrics.exists() and metrics.stat().st_size > 0):
        raise ConfigError(
            f"run_dir {run_dir} holds a run without a config.yaml; copy that of one of its checkpoints there to go on "
            "with it, or give another run_dir"
        )
    if config.init_progress == "keep" and newest_by_name(run_dir) == run_dir:
        _check_branch(config, now)


def in_stored_order(config: Config) -> Config:
    """``config`` with the sets of ``data.mix`` in the order that they have in the run, or in that of which it is a
    branch: the samples are numbered by it, and the command line may name the sets in another."""
    path = Path(config.run_dir) / "config.yaml"
    if config.init_progress == "keep" and not path.is_file():
        path = newest_by_name(Path(config.init_from or "")) / "config.yaml"
    mix = config.data.mix
    if not mix or not path.is_file():
        return config
    names = list((read_options(path).get("data") or {}).get("mix") or {})
    if set(names) != set(mix):
        return config
    return replace(config, data=replace(config.data, mix={name: mix[name] for name in names}))


def _check_branch(config: PretrainConfig, now: str) -> None:
    """Raise ``ConfigError`` if a new branch differs from the run of its checkpoint in more than the steps to come."""
    source = newest_by_name(Path(config.init_from or ""))
    if not (source / "progress.json").is_file() or not (source / "config.yaml").is_file():
        raise ConfigError(
            f"init_progress is 'keep', but init_from={config.init_from} holds no progress.json and config.yaml; "
            "give a checkpoint of a run (RUN/checkpoints/step_*), or init_progress=reset"
        )
    applied = read_progress(source / "progress.json")["step"]
    check_same_run(now, read_text(source / "config.yaml"), config.run_dir, applied, source)


def _check_same_source(config: PretrainConfig, stored: dict[str, Any]) -> None:
    """Raise ``ConfigError`` if a run that has no checkpoint yet began from other weights than it would now."""
    before = {name: stored.get(name, _NEW_OPTIONS.get(name)) for name in _SOURCE}
    now = {name: getattr(config, name) for name in _SOURCE}
    differing = ["init_from"] if _place(before["init_from"]) != _place(now["init_from"]) else []
    if now["init_from"] is not None:  # else the others have no meaning; null leaves the choice to the program
        differing += [
            name for name in _SOURCE[1:] if None not in (before[name], now[name]) and before[name] != now[name]
        ]
    if differing:
        pairs = ", ".join(f"{name} was {before[name]!r} and is {now[name]!r}" for name in differing)
        raise ConfigError(
            f"run_dir {config.run_dir} has no checkpoint yet, and was begun with other weights: {pairs}; give the "
            "same, or another run_dir"
        )


def _place(name: str | None) -> Path | None:
    return None if name is None else Path(name).expanduser().resolve()


def newest_by_name(path: Path) -> Path:
    """The newest checkpoint of the run directory ``path``, valid or not; ``path`` itself if it has none."""
    return max(path.glob("checkpoints/step_????????"), default=path)


def steps_done(run_dir: Path) -> int:
    """The steps of a run that stand: those of its newest checkpoint; without one, those in its metrics."""
    newest = newest_by_name(run_dir)
    if newest != run_dir:
        return step_of(newest)
    return max((row["step"] for row in read_rows(run_dir / "metrics.jsonl")), default=0)


def check_same_run(
    now: str, before: str, run_dir: str, applied: int | None = None, branch: Path | None = None, advice: str = ""
) -> None:
    """Raise ``ConfigError`` if two resolved configurations (YAML) are not the same run.

    ``applied``: the schedules may differ after so many steps; None: they may not. ``branch``: the checkpoint that has
    ``before``, if the run of ``now`` is a branch of it. ``advice``: as for ``check_run_dir``.
    """
    where = branch or Path(run_dir)
    new, old = (flat_options(parse_options(text, where / "config.yaml")) for text in (now, before))
    differing = differing_options(new, old)
    if branch:  # resolve_model has taken what is not stated from this checkpoint
        stated = {key for key in differing if None not in (new.get(key), old.get(key))}
        differing = [key for key in differing if key in stated or not key.startswith("model.")]
    reason = ""
    if applied is not None and any(key.startswith("schedule.") for key in differing):
        reason = changed_past(_schedule(old), _schedule(new), new["optimizer.lr"], applied)
        differing = [key for key in differing if reason or not key.startswith("schedule.")]
    if differing:
        pairs = ", ".join(f"{key} was {old.get(key)!r} and is {new.get(key)!r}" for key in differing[:4])
        found = f"{pairs} ({reason})" if reason else pairs
        if branch:
            raise ConfigError(
                f"init_from={branch} cannot go on as this run: {found}; with init_progress=keep only the rest of the "
                "schedule may differ; give init_progress=reset for a new run from these weights"
            )
        advice = advice or f"give another run_dir, or init_from={run_dir} for a run that starts from its weights"
        raise ConfigError(f"run_dir {run_dir} belongs to another run: {found}; {advice}")


def flat_options(stored: dict[str, Any]) -> dict[str, Any]:
    """The options of a run's ``config.yaml`` by their full names; one that is not there had its default."""
    return _NEW_OPTIONS | _defaults(PretrainConfig) | flat(stored)


def differing_options(new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    """The flat options in which two runs differ, without those that change neither samples nor arithmetic."""
    differing = (key for key in sorted(new.keys() | old.keys()) if new.get(key) != old.get(key))
    by_kind = READY_MADE_ONLY if new.get("data.kind", "shards") == "shards" else ("window",)
    unread = {f"data.{name}" for name in by_kind}  # sets of different kinds are different runs anyway
    moved = re.compile(r"data\.mix\.[^.]+")  # as data.dir
    return [
        key
        for key in differing
        if not any(f"{key}.".startswith(f"{free}.") for free in _MAY_CHANGE_ON_RESUME)
        and key not in unread
        and not (moved.fullmatch(key) and key in new and key in old)
    ]


def _defaults(schema: type, prefix: str = "") -> dict[str, Any]:
    """The options of the dataclass ``schema`` that have a default, flat."""
    found: dict[str, Any] = {}
    for field in fields(schema):
        if is_dataclass(field.type):
            found |= _defaults(field.type, f"{prefix}{field.name}.")  # type: ignore[arg-type]
        elif field.default_factory is not MISSING:
            found[prefix + field.name] = field.default_factory()
        elif field.default is not MISSING:
            found[prefix + field.name] = field.default
    return found


def _schedule(options: dict[str, Any]) -> ScheduleConfig:
    """The schedule in flat options; earlier versions took options that have no effect with its shape."""
    names = [field.name for field in fields(ScheduleConfig)]
    found = {name: options[f"schedule.{name}"] for name in names if f"schedule.{name}" in options}
    unused = {option for option, _, shapes in OF_SHAPES if found.get("shape", "polynomial") not in shapes}
    return ScheduleConfig(**{name: value for name, value in found.items() if name not in unused})


def write_config(run_dir: Path, config_yaml: str, step: int) -> None:
    """Write ``run_dir/config.yaml``, or give that of an extended run the new schedule.

    The schedule that held up to ``step`` stays in ``config_history/until_step_*.yaml``.
    """
    path, text = run_dir / "config.yaml", config_yaml
    if path.exists():
        before = path.read_text(encoding="utf-8")
        old, new = OmegaConf.create(before), OmegaConf.create(config_yaml)
        if ScheduleConfig(**old.schedule) == ScheduleConfig(**new.schedule):
            return
        history = run_dir / "config_history" / f"until_step_{step:08d}.yaml"
        if not history.exists():  # one that is there held up to this step; what followed it trained nothing
            history.parent.mkdir(exist_ok=True)
            replace_file(history, before.encode())
        old.schedule = new.schedule
        text = OmegaConf.to_yaml(old)
    replace_file(path, text.encode())


def moments_fault(config: PretrainConfig, checkpoint: Path) -> str | None:
    """Why the moments in ``checkpoint`` do not fit ``config``'s optimizer; None if they do.

    Another algorithm has other moments, another pre-normalization scales the gradients differently.
    """
    path = checkpoint / "config.yaml"
    before = OmegaConf.create(parse_options(read_text(path), path))  # that of a converted one states little
    now = OmegaConf.create({"optimizer": asdict(config.optimizer)})
    for name in ("algorithm", "pre_normalization", "update_scale", "others.algorithm", "others.pre_normalization"):
        old = OmegaConf.select(before, f"optimizer.{name}")
        new = OmegaConf.select(now, f"optimizer.{name}")
        if old != new:
            return f"{checkpoint} was trained with optimizer.{name}={old} and this run has {new}"
    return None
