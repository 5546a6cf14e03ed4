"""Exports a checkpoint as a folder that ``transformers`` loads: weights, configuration, tokenizer, model card.

The folder is loaded back and checked before it gets its final name.
"""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bert_pretrain.checkpoint.find import resolve_checkpoint
from bert_pretrain.checkpoint.tokenizer_files import copy_tokenizer, set_max_length
from bert_pretrain.config_loading import entry_point
from bert_pretrain.data.tokenizer_files import has_tokenizer
from bert_pretrain.directories import check_replaceable, new_folder
from bert_pretrain.directory_lock import lock_directory
from bert_pretrain.errors import ConfigError, as_config_error, on_one_line
from bert_pretrain.file_system import require_writable
from bert_pretrain.stored_options import parse_options, read_text
from bert_pretrain.training.metrics import read_rows


@dataclass
class ExportConfig:
    """Options of ``bert-pretrain export``."""

    run_dir: str
    """Directory of a run, or of one of its checkpoints."""
    out_dir: str
    """Directory to write."""
    overwrite: bool
    """Replace an earlier export in out_dir. Where out_dir is a link, the link itself is replaced: what it points to
    stays as it is."""


@entry_point("export", ExportConfig)
def main(config: ExportConfig) -> None:
    """Write a checkpoint as a folder that transformers loads: weights, configuration, tokenizer, model card.

        bert-pretrain export run_dir=runs/demo out_dir=my-bert

    Exports the newest valid checkpoint of the run, or the one that run_dir names. The folder is loaded back and
    checked before it gets its final name.
    """
    from bert_pretrain.model.bert import silence_transformers

    silence_transformers()
    checkpoint = resolve_checkpoint(Path(config.run_dir), "run_dir", print)
    out_dir = Path(config.out_dir).absolute()
    check_out_dir(out_dir, config.overwrite, checkpoint)
    require_writable(out_dir.parent, "the directory of out_dir,")
    with lock_directory(out_dir.parent, f"out_dir {out_dir.name} in", f".{out_dir.name}.lock"):
        try:
            export_checkpoint(checkpoint, out_dir)
        except shutil.Error as error:  # of copytree: one reason for each file
            raise ConfigError(f"out_dir {out_dir} cannot be written ({error.args[0][0][2]}); give another") from None
        except OSError as error:
            raise as_config_error(error) from None
    print(f"exported {checkpoint} to {config.out_dir}; load it with the Auto classes of transformers")


def check_out_dir(out_dir: Path, overwrite: bool, checkpoint: Path) -> None:
    """Raise ``ConfigError`` unless ``out_dir`` is absent, or with ``overwrite`` an earlier export or a link to one."""
    place = out_dir.parent.resolve() / out_dir.name
    if place.is_relative_to(checkpoint.resolve()) or checkpoint.resolve().is_relative_to(place):
        raise ConfigError(f"out_dir {out_dir} would replace files of the checkpoint {checkpoint} itself; give another")
    check_replaceable(out_dir, overwrite, ("config.json",), "export")


def export_checkpoint(checkpoint: Path, out_dir: Path) -> None:
    """Write the model of ``checkpoint`` to ``out_dir``, after checking that it loads."""
    with new_folder(out_dir) as folder:
        shutil.copytree(checkpoint / "model", folder)
        positions = json.loads((folder / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"]
        set_max_length(folder, positions)  # checkpoints of version 0.1 state another
        (folder / "README.md").write_text(model_card(checkpoint), encoding="utf-8")
        check_loads(folder)


def check_loads(folder: Path) -> None:
    """Load ``folder`` with transformers, and run it on a text that is too long.

    Raises ``ConfigError`` for missing weights, a tokenizer with more tokens than the model, or one that does not cut.
    """
    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForPreTraining

    has_both_heads = "BertForPreTraining" in AutoConfig.from_pretrained(folder).architectures
    for auto in (AutoModelForPreTraining, AutoModelForMaskedLM) if has_both_heads else (AutoModelForMaskedLM,):
        model, report = auto.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        faults = ["missing_keys", "mismatched_keys"]
        if auto is AutoModelForPreTraining or not has_both_heads:  # AutoModelForMaskedLM has no pooler
            faults.append("unexpected_keys")
        if any(report[fault] for fault in faults):
            raise ConfigError(f"{folder} does not load as {auto.__name__}: {report}")
    if not has_tokenizer(folder):
        return
    encoded = check_tokenizer(folder, model.config.vocab_size, model.config.max_position_embeddings, str(folder))
    with torch.no_grad():
        model(**encoded)  # raises for an id or a position that the model does not have


def check_tokenizer(folder: Path, vocab_size: int, positions: int, name: str) -> Any:
    """A text that is too long, as the tokenizer in ``folder`` encodes it for a model.

    Raises ``ConfigError`` for a tokenizer, called ``name``, with more tokens than the model, or one that does not cut.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the libraries raise many types
        raise ConfigError(f"{name}: transformers cannot load this tokenizer ({on_one_line(error)})") from None
    if len(tokenizer) > vocab_size:
        raise ConfigError(f"{name}: the tokenizer has {len(tokenizer)} tokens in transformers, the model {vocab_size}")
    encoded = tokenizer("a " * (2 * positions), truncation=True, return_tensors="pt")
    if encoded["input_ids"].shape[1] != positions:
        raise ConfigError(f"{name}: the tokenizer cuts at {tokenizer.model_max_length} tokens, not at {positions}")
    return encoded


def check_before_training(tokenizer: Path, vocab_size: int, positions: int) -> None:
    """Raise ``ConfigError`` if an export of a model with ``tokenizer`` would be refused."""
    if not has_tokenizer(tokenizer):
        return
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
        copy_tokenizer(tokenizer, Path(folder), positions)
        check_tokenizer(Path(folder), vocab_size, positions, f"data.tokenizer {tokenizer}")


def model_card(checkpoint: Path) -> str:
    """The README of the folder: steps, samples, held-out loss and configuration of the run."""
    from bert_pretrain.checkpoint.store import load_progress

    progress = load_progress(checkpoint)
    config = OmegaConf.create(parse_options(read_text(checkpoint / "config.yaml"), checkpoint / "config.yaml"))
    metrics = checkpoint.parent.parent / "metrics.jsonl"
    rows = [row for row in read_rows(metrics) if "eval_mlm_loss" in row] if metrics.exists() else []
    rows = [row for row in rows if row["step"] == progress.step]
    heldout = f"Held-out MLM loss {rows[-1]['eval_mlm_loss']:.4f} nats.\n" if rows else ""
    return (
        "---\nlibrary_name: transformers\npipeline_tag: fill-mask\n---\n\n"
        f"A BERT pretrained for {progress.step:,} steps on {progress.samples_seen:,} samples "
        f"({progress.tokens_seen:,} tokens) with {config.optimizer.algorithm}.\n{heldout}\n"
        "The resolved configuration of the run:\n\n```yaml\n" + OmegaConf.to_yaml(config) + "```\n"
    )


if __name__ == "__main__":
    main()
