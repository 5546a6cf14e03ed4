"""What the report tells of a run: what, where, when, with what, how far, and what came out."""

import time
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from statistics import median

from bert_pretrain.errors import ConfigError
from bert_pretrain.files.directory_lock import is_touched
from bert_pretrain.model.flops import parameter_count
from bert_pretrain.model.options import ModelConfig
from bert_pretrain.options.stored_options import read_options
from bert_pretrain.report.reference import on_track
from bert_pretrain.report.stored_run import Run, usable_rows, usable_sessions
from bert_pretrain.same_run import flat_options
from bert_pretrain.training.metrics import duration, perplexity
from bert_pretrain.training.sessions import METRICS

Fact = tuple[str, str]


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
        headline(run)  # raises for what the files lack, before anything is drawn
        facts(run)
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
    vocabulary = f"{model.vocab_size:,} tokens in the vocabulary"
    weights = parameter_count(model)
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
    loss, step = last["eval_mlm_loss"], last["step"]
    found += [
        ("held-out MLM loss", f"{loss:.4f} nats after step {step:,}, perplexity {perplexity(loss):,.1f}"),
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
