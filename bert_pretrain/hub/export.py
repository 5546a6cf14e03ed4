"""Exports a checkpoint as a folder that ``transformers`` loads: weights, configuration, tokenizer, model card.

The folder is loaded back and checked before it gets its final name.
"""

import filecmp
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_pretrain.checkpoint.files import find_fault
from bert_pretrain.checkpoint.find import checkpoints_in, resolve_checkpoint, step_of
from bert_pretrain.checkpoint.tokenizer_files import copy_tokenizer, set_max_length
from bert_pretrain.data.tokenizer_files import has_tokenizer
from bert_pretrain.errors import ConfigError, as_config_error, on_one_line, require
from bert_pretrain.files.directory_lock import lock_beside
from bert_pretrain.files.file_system import check_replaceable, new_folder, require_writable
from bert_pretrain.hub.card import CARD, model_card
from bert_pretrain.hub.push import Target, open_target, push
from bert_pretrain.options.entry_point import entry_point


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
    licence: str | None
    """The licence of the model for its card, by the hub's name for it (apache-2.0, mit); null: unknown."""
    push_to: str | None
    """Push the checked export to the hub: OWNER/NAME, or NAME for a model of your own."""
    push_checkpoints: bool
    """Also push every checkpoint of the run, each as the branch step_N."""
    private: bool
    """Make a new repository private. One that is there stays as it is."""

    def __post_init__(self) -> None:
        require(
            self.push_to is not None or not self.push_checkpoints, "push_checkpoints", True, "false without push_to"
        )


@entry_point("export", ExportConfig)
def main(config: ExportConfig) -> None:
    """Write a checkpoint as a folder that transformers loads: weights, configuration, tokenizer, model card.

        bert-pretrain export run_dir=runs/demo out_dir=my-bert

    Exports the newest valid checkpoint of the run, or the one that run_dir names. The folder is loaded back and
    checked before it gets its final name. With push_to=OWNER/NAME it is pushed to the hub; an export of the same
    checkpoint that is in out_dir already is checked and pushed as it is, so that the same command goes on after a
    failure. The token is that of huggingface_hub (HF_TOKEN).
    """
    from bert_pretrain.model.bert import silence_transformers

    silence_transformers()
    checkpoint = resolve_checkpoint(Path(config.run_dir), "run_dir", print)
    out_dir = Path(config.out_dir).absolute()
    is_there = config.push_to is not None and not config.overwrite and holds(out_dir, checkpoint)
    if not is_there:
        check_out_dir(out_dir, config.overwrite, checkpoint)
    require_writable(out_dir.parent, "the directory of out_dir,")
    target = open_target(config.push_to, "model", config.private) if config.push_to else None
    name = target.repo if target else out_dir.name
    with lock_beside(out_dir):
        try:
            if is_there:
                renew_card(out_dir, checkpoint, name, config.licence)
                check_loads(out_dir)
            else:
                export_checkpoint(checkpoint, out_dir, name, config.licence)
            done = "was exported already" if is_there else "is exported"
            print(f"{checkpoint} {done} to {config.out_dir}; load it with the Auto classes of transformers", flush=True)
            if target:
                push_export(target, out_dir, checkpoint)
            if target and config.push_checkpoints:
                push_checkpoints(target, checkpoint.parent, out_dir.parent, config.licence)
        except shutil.Error as error:  # of copytree: one reason for each file
            raise ConfigError(f"out_dir {out_dir} cannot be written ({error.args[0][0][2]}); give another") from None
        except OSError as error:
            raise as_config_error(error) from None


def check_out_dir(out_dir: Path, overwrite: bool, checkpoint: Path) -> None:
    """Raise ``ConfigError`` unless ``out_dir`` is absent, or with ``overwrite`` an earlier export or a link to one."""
    place = out_dir.parent.resolve() / out_dir.name
    if place.is_relative_to(checkpoint.resolve()) or checkpoint.resolve().is_relative_to(place):
        raise ConfigError(f"out_dir {out_dir} would replace files of the checkpoint {checkpoint} itself; give another")
    check_replaceable(out_dir, overwrite, ("config.json",), "export")


def holds(out_dir: Path, checkpoint: Path) -> bool:
    """Whether ``out_dir`` is an export of ``checkpoint``: it has the same weights."""
    names = [path.name for path in (checkpoint / "model").glob("*.safetensors")]
    equal, _, _ = filecmp.cmpfiles(checkpoint / "model", out_dir, names, shallow=False)
    return (out_dir / CARD).is_file() and (out_dir / "config.json").is_file() and len(equal) == len(names) > 0


def export_checkpoint(
    checkpoint: Path, out_dir: Path, name: str, licence: str | None, revision: str | None = None
) -> None:
    """Write the model of ``checkpoint`` to ``out_dir``, after checking that it loads.

    The card says that it loads by ``name`` and ``revision``.
    """
    with new_folder(out_dir) as folder:
        shutil.copytree(checkpoint / "model", folder, copy_function=shutil.copyfile)  # the modes are the umask's
        positions = json.loads((folder / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"]
        set_max_length(folder, positions)  # checkpoints of version 0.1 state another
        (folder / CARD).write_text(model_card(checkpoint, name, licence, revision), encoding="utf-8")
        check_loads(folder)


def renew_card(out_dir: Path, checkpoint: Path, name: str, licence: str | None) -> None:
    """Write the card of the export in ``out_dir`` anew, unless somebody has changed it."""
    names, licences = {out_dir.name, name}, {None, licence}
    ours = {model_card(checkpoint, one, stated) for one in names for stated in licences}
    if (out_dir / CARD).read_text(encoding="utf-8") in ours:
        (out_dir / CARD).write_text(model_card(checkpoint, name, licence), encoding="utf-8")
    else:
        print(f"{out_dir / CARD} was changed, and is pushed as it is")


def push_export(target: Target, folder: Path, checkpoint: Path, branch: str | None = None) -> None:
    """Push the export of ``checkpoint`` in ``folder`` to ``branch``."""
    files: dict[str, Path | bytes] = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*"))
                                      if path.is_file()}  # fmt: skip
    push(target, files, "config.json", f"step {step_of(checkpoint):,}", branch)


def push_checkpoints(target: Target, directory: Path, scratch: Path, licence: str | None) -> None:
    """Push each valid checkpoint in ``directory`` as a branch. Each is exported to ``scratch`` and checked before."""
    for checkpoint in checkpoints_in(directory):
        if fault := find_fault(checkpoint):
            print(f"checkpoint {checkpoint} is skipped: {fault}")
            continue
        branch = f"step_{step_of(checkpoint)}"
        with tempfile.TemporaryDirectory(prefix=".export.", dir=scratch) as folder:
            export_checkpoint(checkpoint, Path(folder, branch), target.repo, licence, branch)
            push_export(target, Path(folder, branch), checkpoint, branch)


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


if __name__ == "__main__":
    main()
