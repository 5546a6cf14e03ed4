"""Loads the model of ``bert-pretrain evaluate`` and runs it over the held-out shards."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from tqdm import tqdm
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining

from bert_pretrain.data.batch_plan import AUTO, BatchConfig
from bert_pretrain.data.dataset import ShardSet, are_pairs
from bert_pretrain.distributed.preemption import StopRequest
from bert_pretrain.distributed.world import open_world
from bert_pretrain.errors import EXIT_STOPPED, ConfigError
from bert_pretrain.hub.from_pretrained import fill, read_weights
from bert_pretrain.hub.heldout import HeldoutShards, open_heldout
from bert_pretrain.hub.source import Source
from bert_pretrain.model.bert import PretrainingModel, silence_transformers
from bert_pretrain.model.options import SpeedConfig
from bert_pretrain.options.config_files import CONFIG_DIR
from bert_pretrain.training.evaluation import mean_losses, sum_losses
from bert_pretrain.training.metrics import LineTimer, Row, duration, perplexity

_GPU_TOKENS = 32_768


@dataclass(frozen=True)
class Measured:
    """What an evaluation found."""

    whole: Row
    """Of all samples."""
    sources: dict[str, Row]
    """Of each corpus by its name, if there are several."""
    directory: Path
    fingerprint: str
    """Of the held-out shards."""
    device: str


def measure(source: Source, data: HeldoutShards, micro_batch_size: Any, device: str) -> Measured | None:
    """Evaluate the model of ``source`` on ``data``; None on other ranks than the first.

    Raises ``ConfigError`` for damaged shards, and for a model that lacks the masked-word head or has another fault.
    Exits with ``EXIT_STOPPED`` after a stop request.
    """
    silence_transformers()
    stop = StopRequest().install_handlers()
    with open_world(device, repr((source.name, data)), stop=stop) as world:
        report = print if world.is_first else (lambda _: None)
        model = world.run_on_all_ranks(lambda: load_model(source, world.device))
        shards = world.run_on_all_ranks(lambda: open_heldout(data, report))
        corpora = world.run_on_all_ranks(shards.sources)
        size = samples_at_once(micro_batch_size, source, data.sequence_length, world.device)
        next_sentence = model.next_sentence and are_pairs(shards)
        world.run_on_all_ranks(lambda: check_segments(model, shards, source))
        report(describe(source, shards, data, model, next_sentence))
        progress = ProgressBar(-(-shards.samples // world.size), not world.is_first)
        numbers = None if corpora is None else corpora[0]
        sums = sum_losses(model, shards, size, world, stop, numbers, progress.show)
        progress.close()
    if sums is None:
        report("stopped on request; nothing was written")
        sys.exit(EXIT_STOPPED)
    if not world.is_first:
        return None
    whole, *rows = (result_row(mean_losses(row, next_sentence), *row[-2:]) if row[-1] else {} for row in sums)
    named = zip([] if corpora is None else corpora[1], rows, strict=False)  # the last corpora may have no sample
    sources = {name: row for name, row in named if row}
    return Measured(whole, sources, shards.paths[0].parent, shards.fingerprint, str(world.device))


def samples_at_once(size: Any, source: Source, length: int, device: torch.device) -> int:
    """The option ``batch.micro_batch_size`` as a number. The run's own gives its numbers to the last bit."""
    if size == AUTO and source.checkpoint is not None:
        run = OmegaConf.load(source.checkpoint / "config.yaml")
        size = OmegaConf.select(run, "batch.micro_batch_size", default=AUTO)
    if size == AUTO and device.type == "cuda":
        return max(1, _GPU_TOKENS // length)
    return BatchConfig(1, size).samples_at_once(length)


def result_row(row: Row, masked: float, samples: float) -> Row:
    """A row of the results: the metrics of an evaluation, and what they were measured on."""
    named = {"eval_mlm_loss", "eval_mlm_accuracy", "eval_nsp_loss", "eval_nsp_accuracy"}
    kept = {name: value for name, value in row.items() if name in named}
    measured_on = {"masked_tokens": int(masked), "samples": int(samples)}
    return {**kept, "eval_perplexity": perplexity(row["eval_mlm_loss"]), **measured_on}


def load_model(source: Source, device: torch.device) -> PretrainingModel:
    """The model of ``source`` on ``device``, with the next-sentence head if ``source`` has one.

    Raises ``ConfigError`` if a weight is missing, of another shape or not finite: none may be random.
    """
    where = f"model_dir is {source.name!r}"
    found = read_weights(source, "model_dir")
    has_both = {"cls.seq_relationship.weight", "cls.seq_relationship.bias", "bert.pooler.dense.weight"} <= found.keys()
    config: Any = BertConfig.from_dict(source.config)
    config._attn_implementation = "sdpa" if device.type == "cuda" else "eager"
    try:
        bert = (BertForPreTraining if has_both else BertForMaskedLM)(config)
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"{where}, of whose config.json transformers makes no BERT ({error!r})") from None
    tied = "cls.predictions.decoder."
    wanted = [name for name, _ in bert.named_parameters(remove_duplicate=False) if not name.startswith(tied)]
    if f"{tied}weight" in found:
        raise ConfigError(f"{where}, whose {tied}weight is not that of its embeddings; this program computes tied ones")
    if missing := [name for name in wanted if name not in found]:
        head = [name for name in missing if name.startswith("cls.")]
        what = f"no masked-word head ({head[0]})" if head else f"no {missing[0]}"
        raise ConfigError(
            f"{where}, which has {what}: it would be random; give a model that was saved with it (BertForMaskedLM, "
            f"BertForPreTraining), or train one with pretrain init_from={source.name}"
        )
    own = dict(bert.named_parameters(remove_duplicate=False))
    fill({name: own[name] for name in wanted}, found, where, "its config.json says")
    if broken := [name for name in wanted if not own[name].isfinite().all()]:
        raise ConfigError(f"{where}, whose {broken[0]} has values that are not finite; give another checkpoint")
    speed: Any = OmegaConf.load(CONFIG_DIR / "run.yaml").speed  # with those of a run, its numbers to the last bit
    return PretrainingModel(bert, SpeedConfig(**speed).on(device)).to(device)


def check_segments(model: PretrainingModel, shards: ShardSet, source: Source) -> None:
    """Raise ``ConfigError`` if the model has one kind of segment only and the samples have two."""
    if model.bert.config.type_vocab_size < 2 and are_pairs(shards):
        raise ConfigError(
            f"data.dir {shards.paths[0].parent} has pairs of segments, but model_dir {source.name!r} has one kind of "
            "segment only (type_vocab_size); prepare shards with sample_kind=single"
        )


def describe(
    source: Source, shards: ShardSet, data: HeldoutShards, model: PretrainingModel, next_sentence: bool
) -> str:
    """What is evaluated on what, in two lines."""
    shape = model.bert.config
    step = "" if source.checkpoint is None else f", {source.checkpoint.name}"
    heads = "masked words and next sentences" if next_sentence else "masked words"
    return (
        f"model {source.name}{step}: {shape.num_hidden_layers} layers of {shape.hidden_size}, "
        f"{shape.vocab_size:,} words; measured on {heads}\n"
        f"data  {data.dir}: {shards.samples:,} held-out samples of up to {data.sequence_length} tokens, fingerprint "
        f"{shards.fingerprint[:12]}"
    )


class ProgressBar:
    """A bar on a terminal, else a line now and then."""

    def __init__(self, samples: int, hidden: bool) -> None:
        self._bar = tqdm(
            total=samples, unit=" samples", disable=hidden or not sys.stderr.isatty(), leave=False, dynamic_ncols=True
        )
        self._samples = samples
        self._prints = self._bar.disable and not hidden
        self._lines = LineTimer()

    def show(self, done: int) -> None:
        """Show that ``done`` samples are done."""
        self._bar.update(done - self._bar.n)
        if self._prints and self._lines.due():
            left = (time.monotonic() - self._lines.started) / done * (self._samples - done)
            print(f"{done:,} of {self._samples:,} samples, {duration(left)} left", flush=True)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()
