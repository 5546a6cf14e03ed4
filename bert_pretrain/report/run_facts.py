"""What a run's directory tells about it: its options, its metrics, its sessions, its shards."""

import math
import time
from dataclasses import dataclass, fields
from datetime import datetime
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from bert_pretrain.data.shard_directory import data_fingerprint, read_manifest
from bert_pretrain.directory_lock import is_touched
from bert_pretrain.errors import ConfigError
from bert_pretrain.model.flops import parameter_count
from bert_pretrain.model.options import ModelConfig
from bert_pretrain.report.reference import on_track
from bert_pretrain.same_run import flat_options
from bert_pretrain.stored_options import read_options, read_progress
from bert_pretrain.trackers.tracker import DIVERGED, FAILED, FINISHED, STOPPED
from bert_pretrain.training.metrics import LAYER_KINDS, Row, duration, read_rows
from bert_pretrain.training.sessions import METRICS, read_sessions

RUNNING, KILLED, UNFINISHED = "running", "ended without a word, as after a kill", "not finished"
_ENDS = (FINISHED, STOPPED, DIVERGED, FAILED)
_NEEDED = {"mlm_loss": ("samples_seen", "tokens_per_second"), "eval_mlm_loss": ("eval_mlm_accuracy",),
           "trust_ratio": LAYER_KINDS}  # fmt: skip
"""What the rows of a kind must have, by the key that makes their kind."""
_OF_SESSION = {"host", "version", "step", "ranks", "device", "compute", "torch"}
Fact = tuple[str, str]


@dataclass(frozen=True)
class Run:
    """One run, as it is on disk at the moment of reading."""

    directory: Path
    options: dict[str, Any]
    rows: list[Row]
    sessions: list[dict[str, Any]]
    is_running: bool
    until: float
    """Up to when this is known, in seconds since 1970: when the metrics were last written; of a running one, now."""

    @property
    def name(self) -> str:
        """The name of the directory."""
        return self.directory.resolve().name

    @cached_property
    def training(self) -> list[Row]:
        """The rows of training steps."""
        return [row for row in self.rows if "mlm_loss" in row]

    @cached_property
    def heldout(self) -> list[Row]:
        """The rows of evaluations."""
        return [row for row in self.rows if "eval_mlm_loss" in row]

    @property
    def done(self) -> int:
        """The last step in the metrics."""
        return max((row["step"] for row in self.rows), default=0)

    @property
    def planned(self) -> int:
        """The steps of the whole run."""
        return int(self.options["schedule"]["total_steps"])

    @property
    def last_session(self) -> dict[str, Any]:
        """The newest session; empty for a run of a version that kept no record."""
        return self.sessions[-1] if self.sessions else {}

    @property
    def state(self) -> str:
        """How the run stands, in one or a few words."""
        if self.is_running:
            return RUNNING
        how = self.last_session.get("how")
        if how in _ENDS:
            return str(how)
        if self.training and not math.isfinite(self.training[-1]["mlm_loss"]):
            return DIVERGED
        return KILLED if self.sessions else FINISHED if self.done >= self.planned else UNFINISHED

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest of the shards; empty if they are not on this machine, or have none."""
        directory = Path(self.options.get("data", {}).get("dir", ""))
        return (read_manifest(directory) if directory.is_dir() else None) or {}

    @property
    def corpus(self) -> set[str]:
        """The names of what the shards were made of, of files without their directories; empty if not known."""
        return {Path(source["name"]).name for source in self.manifest.get("sources", [])}

    def shards(self, split: str) -> tuple[int | None, str | None]:
        """The samples of a split and its fingerprint, as the run found them; None: not known.

        A run of a version that kept no record: as its newest checkpoint says, or the manifest as it is now.
        """
        if of_split := self.last_session.get("data", {}).get(split):
            return of_split["samples"], of_split["fingerprint"]
        listed = [row for row in self.manifest.get("shards", []) if row["split"] == split]
        samples, found = sum(int(row["samples"]) for row in listed) or None, None
        if listed and all("checksum" in row for row in listed):
            found = data_fingerprint((row["name"], row["samples"], row["checksum"]) for row in listed)
        newest = max(self.directory.glob("checkpoints/step_????????/progress.json"), default=None)
        if split == "train" and newest is not None:
            found = read_progress(newest).get("data_fingerprint") or found
        return samples, found

    def tokens_per_second(self) -> float | None:
        """Real tokens a second, the median of the logged rows but the first, which includes the start-up."""
        rates = [row["tokens_per_second"] for row in self.training[1:] or self.training]
        return median(rates) if rates else None

    def seconds(self) -> float | None:
        """Wall time of all sessions; None for a run of a version that kept no record."""
        if not self.sessions:
            return None
        ends = [session["ended"] or max(self.until, session["time"]) for session in self.sessions]
        return sum(end - session["time"] for end, session in zip(ends, self.sessions, strict=True))


def read_run(directory: Path, option: str = "run_dir") -> Run:
    """The run in ``directory``, the value of ``option``. Raises ``ConfigError`` if there is none."""
    config, metrics = directory / "config.yaml", directory / METRICS
    try:
        if not metrics.exists() or not config.exists():
            found = f"{option} is {str(directory)!r}, which holds no run (metrics.jsonl, config.yaml)"
            raise ConfigError(f"{found}; give the run_dir of a pretraining")
        sessions = usable_sessions(directory)
        # A process that has ended the run still holds it while it draws this page and waits for trackers.
        is_running = is_touched(directory) and not (sessions and sessions[-1]["ended"])
        until = time.time() if is_running else metrics.stat().st_mtime
        run = Run(directory, read_options(config), usable_rows(directory), sessions, is_running, until)
        headline(run), facts(run)  # of what the files hold, before anything is drawn
    except OSError as error:
        raise ConfigError(f"{option} {directory} cannot be read ({error})") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{option} {directory}: its config.yaml is damaged ({type(error).__name__}: {error}); put a copy of the "
            "config.yaml of one of the run's checkpoints there"
        ) from None
    return run


def usable_rows(directory: Path) -> list[Row]:
    """The rows of the run's metrics that have their numbers."""
    path = directory / METRICS
    return [row for row in read_rows(path) if _has_numbers(row)] if path.exists() else []


def _has_numbers(row: Row) -> bool:
    values = [one for value in row.values() for one in (value.values() if isinstance(value, dict) else [value])]
    lacking = [name for kind, names in _NEEDED.items() if kind in row for name in names if name not in row]
    maps = all(isinstance(value, dict) == (name in LAYER_KINDS) for name, value in row.items())
    return not lacking and maps and row["step"] >= 0 and all(isinstance(value, int | float) for value in values)


def usable_sessions(directory: Path) -> list[dict[str, Any]]:
    """The sessions of the run that have what is shown of them."""
    found = [session for session in read_sessions(directory) if session.keys() >= _OF_SESSION]
    return [one for one in found if isinstance(one["step"], int) and isinstance(one.get("data", {}), dict)]


def by_name(runs: list[Run]) -> dict[str, Run]:
    """The runs by the names of their directories; by their paths where two have the same name."""
    names = [run.name for run in runs]
    return {run.name if names.count(run.name) == 1 else str(run.directory): run for run in runs}


def headline(run: Run) -> list[Fact]:
    """The few numbers that matter first."""
    found = [("state", run.state)]
    if run.heldout:
        found.append(("held-out MLM loss", f"{run.heldout[-1]['eval_mlm_loss']:.4f}"))
    elif run.training:
        found.append(("MLM loss of the last batch", f"{run.training[-1]['mlm_loss']:.4f}"))
    found.append(("steps", f"{run.done:,} of {run.planned:,}"))
    if (seconds := run.seconds()) is not None:
        found.append(("wall time", duration(seconds)))
        begun = run.last_session["step"]
        if run.is_running and run.done > begun:
            elapsed = run.until - run.last_session["time"]
            found.append(("left, about", duration(elapsed / (run.done - begun) * (run.planned - run.done))))
    return found


def facts(run: Run) -> list[Fact]:
    """What, where, when, with what, how far, and what came out."""
    reference = on_track(run.options, run.shards("train")[1], run.corpus, run.rows)
    return [*_identity(run), *_setting(run), *_progress(run), *_results(run), ("reference curve", reference)]


def _identity(run: Run) -> list[Fact]:
    found = [("run", str(run.directory.resolve()))]
    state = run.state
    if reason := run.last_session.get("reason"):
        state = f"{state}: {reason}"
    found.append(("state", state))
    if not run.sessions:
        return found
    hosts = dict.fromkeys(str(session["host"]) for session in run.sessions)
    versions = dict.fromkeys(str(session["version"]) for session in run.sessions)
    last, end = run.last_session, run.last_session["ended"]
    ended = "not yet" if run.is_running else moment(end or run.until)
    devices = dict.fromkeys(f"{one['ranks']} x {one['device']}, {one['compute']}" for one in run.sessions)
    return [
        *found,
        ("host", ", ".join(hosts)),
        ("started", moment(run.sessions[0]["time"])),
        ("ended", ended),
        ("program", f"{', '.join(versions)}; torch {last['torch']}"),
        ("device", "; ".join(devices)),
    ]


def _setting(run: Run) -> list[Fact]:
    options = run.options
    known = {field.name for field in fields(ModelConfig)}
    stated = {name.removeprefix("model."): value for name, value in flat_options(options).items()}
    model = ModelConfig(**{name: value for name, value in stated.items() if name in known})
    heads = "masked words and next sentence" if model.next_sentence else "masked words"
    shape = f"{model.num_hidden_layers} layers, width {model.hidden_size:,}, {model.num_attention_heads} heads"
    vocabulary, weights = f"{model.vocab_size:,} tokens in the vocabulary", parameter_count(model)
    size = f"{weights / 1e6:,.1f} million" if weights >= 1e6 else f"{weights:,}"
    optimizer, schedule = options["optimizer"], options["schedule"]
    cut = run.last_session.get("micro_batch_size", options["batch"]["micro_batch_size"])
    batch = f"{options['batch']['global_batch_size']:,} samples a step, up to {cut} of them at once on a rank"
    return [
        ("model", f"BERT, {shape}, {vocabulary}: {size} parameters; {heads}"),
        ("first weights", options.get("init_from") or f"random, seed {options['seed']}"),
        *_data(run),
        ("batch", batch),
        ("optimizer", f"{optimizer['algorithm']}, learning rate {optimizer['lr']:g}, "
         f"{schedule['warmup_proportion']:.0%} of the steps warm-up, weight decay {optimizer['weight_decay']:g}"),
    ]  # fmt: skip


def _data(run: Run) -> list[Fact]:
    data = run.options["data"]
    counts = [f"{samples:,} {name}" for name, split in (("training", "train"), ("held-out", "heldout"))
              if (samples := run.shards(split)[0])]  # fmt: skip
    sizes = f": {' and '.join(counts)} samples" if counts else ""
    found = [("data", f"{data['dir']}{sizes} of up to {data['sequence_length']} tokens, {data['masking']} masks")]
    if sources := run.manifest.get("sources"):
        listed = [f"{source['name']} ({source.get('licence') or 'licence not stated'})" for source in sources]
        found.append(("sources", "; ".join(listed)))
    return found


def _progress(run: Run) -> list[Fact]:
    batch = run.options["batch"]["global_batch_size"]
    found = [("steps planned", f"{run.planned:,}, {run.planned * batch:,} samples")]
    if run.training:
        last, train = run.training[-1], run.shards("train")[0]
        epochs = f", {last['samples_seen'] / train:.2f} passes over the data" if train else ""
        skipped = f", {last['skipped_steps']} updates skipped" if last.get("skipped_steps") else ""
        spikes = f", {last['loss_spikes']} loss spikes" if last.get("loss_spikes") else ""
        found.append(("steps done", f"{run.done:,}, {last['samples_seen']:,} samples{epochs}{skipped}{spikes}"))
    else:
        found.append(("steps done", "no step is logged yet"))
    if (seconds := run.seconds()) is not None:
        starts = len(run.sessions)
        found.append(("wall time", duration(seconds) + (f" in {starts} sessions" if starts > 1 else "")))
    return found


def _results(run: Run) -> list[Fact]:
    found = []
    if run.training:
        last = run.training[-1]
        rates = [row["mfu"] for row in run.training[1:] or run.training if "mfu" in row]
        mfu = f", MFU {median(rates):.0%}" if rates else ""
        found.append(("real tokens per second, median", f"{run.tokens_per_second():,.0f}{mfu}"))
        found.append(("MLM loss, last batch", f"{last['mlm_loss']:.4f} nats"))
    if not run.heldout:
        return [*found, ("held-out MLM loss", "not evaluated yet" if run.is_running else "no evaluation")]
    first, last = run.heldout[0], run.heldout[-1]
    if first["step"] == 0:
        found.append(("held-out MLM loss at step 0", f"{first['eval_mlm_loss']:.4f} nats"))
    perplexity = f"perplexity {math.exp(min(last['eval_mlm_loss'], 700.0)):,.1f}"
    found += [
        ("held-out MLM loss", f"{last['eval_mlm_loss']:.4f} nats after step {last['step']:,}, {perplexity}"),
        ("held-out MLM accuracy", f"{last['eval_mlm_accuracy']:.4f}"),
    ]
    if "eval_nsp_accuracy" in last:
        found.append(("held-out next-sentence accuracy", f"{last['eval_nsp_accuracy']:.4f}"))
    if "unigram_entropy" in run.manifest:
        entropy = float(run.manifest["unigram_entropy"])
        found.append(("unigram entropy of the corpus", f"{entropy:.4f} nats"))
        found.append(("held-out MLM loss below that by", f"{entropy - last['eval_mlm_loss']:.4f} nats"))
    return found


def moment(seconds: float) -> str:
    """Local time with its offset from UTC, to the minute."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M %z")
