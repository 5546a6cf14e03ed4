"""Measures a BERT on held-out shards: loss, perplexity and accuracy on their masked words, next-sentence accuracy.

The masks are those in the shards, so that they are the same for every model with the shards' tokenizer, and the numbers
are those of a run's own evaluation.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_pretrain.checkpoint.find import step_of
from bert_pretrain.data.batch_plan import BatchConfig
from bert_pretrain.data.shard_cache import CacheConfig
from bert_pretrain.data.shard_directory import shard_folder
from bert_pretrain.distributed.options import DEVICES
from bert_pretrain.errors import require_choice
from bert_pretrain.files.file_system import check_new_file, write_json
from bert_pretrain.hub.heldout import check_fit
from bert_pretrain.hub.source import Source, find_source
from bert_pretrain.options.entry_point import entry_point
from bert_pretrain.training.metrics import Row

if TYPE_CHECKING:
    from bert_pretrain.hub.measure import Measured


@dataclass
class HeldoutConfig(CacheConfig):
    """Options ``data.*`` of ``bert-pretrain evaluate``."""

    dir: str
    """Directory with held-out shards, as written by `bert-pretrain prepare` or in NVIDIA's published layout; or an
    address of one that prepare wrote, such as s3://bucket/set."""


@dataclass
class MicroBatchConfig:
    """Options ``batch.*`` of ``bert-pretrain evaluate``."""

    micro_batch_size: Any  # int or "auto"
    """Samples in one forward pass. ``auto``: as in the run that model_dir is of; of other models, 2,048 tokens on a CPU
    and 32,768 on a GPU."""


@dataclass
class EvaluateConfig:
    """Options of ``bert-pretrain evaluate``."""

    model_dir: str
    """A run, a checkpoint, an export, any BERT folder of transformers with a masked-word head, or a name on the hub."""
    data: HeldoutConfig
    batch: MicroBatchConfig
    out_json: str | None
    """File for the numbers and what was evaluated; null: only print them."""
    overwrite: bool
    """Replace out_json if it exists."""
    device: str
    """auto, cpu or cuda."""

    def __post_init__(self) -> None:
        BatchConfig(1, self.batch.micro_batch_size)
        require_choice("device", self.device, DEVICES)


@entry_point("evaluate", EvaluateConfig)
def main(config: EvaluateConfig) -> None:
    """Measure a BERT on held-out shards: loss, perplexity and accuracy on the masked words, next-sentence accuracy.

        bert-pretrain evaluate model_dir=my-bert data.dir=data/mine out_json=my-bert.json

    The masks are those in the shards: the same for every model that shares their tokenizer. Where the shards are of
    several corpora, each is measured by itself too. Next sentences are measured where the model has that head and the
    samples are pairs. All is computed in float32.
    """
    if config.out_json is not None:
        check_new_file(Path(config.out_json), "out_json", config.overwrite)
    source = find_source(config.model_dir, "model_dir", print)
    data = check_fit(source, shard_folder(config.data.dir, config.data))

    from bert_pretrain.hub.measure import measure  # imports torch

    measured = measure(source, data, config.batch.micro_batch_size, config.device)
    if measured is None:
        return
    print(table({"all": measured.whole, **{f"  {name}": row for name, row in measured.sources.items()}}))
    if config.out_json is not None:
        write_results(Path(config.out_json), source, measured)
        print(f"wrote {config.out_json}")


def write_results(path: Path, source: Source, measured: "Measured") -> None:
    """Write ``out_json``: the row of all samples, those of each corpus, and what was evaluated on what."""
    step = None if source.checkpoint is None else step_of(source.checkpoint)
    content = {
        **measured.whole,
        "sources": measured.sources,
        "model": {"name": source.name, "folder": str(source.folder.resolve()), "step": step},
        "data": {"dir": str(measured.directory.resolve()), "fingerprint": measured.fingerprint},
        "device": measured.device,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": metadata.version("bert-pretrain"),
    }
    write_json(path, content)


def table(rows: dict[str, Row]) -> str:
    """The rows as text, with one line each."""
    columns = {
        "samples": ("samples", ","), "masked words": ("masked_tokens", ","), "loss": ("eval_mlm_loss", ".4f"),
        "perplexity": ("eval_perplexity", ",.2f"), "accuracy": ("eval_mlm_accuracy", ".2%"),
        "next sentence": ("eval_nsp_accuracy", ".2%"),
    }  # fmt: skip
    shown = {title: column for title, column in columns.items() if column[0] in next(iter(rows.values()))}
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{title:>15}" for title in shown)]
    for name, row in rows.items():
        lines.append(f"{name:<{width}}" + "".join(f"{row[key]:>15{form}}" for key, form in shown.values()))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
