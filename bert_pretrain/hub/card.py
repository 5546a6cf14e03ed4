"""The cards of a model and of shards, as the hub reads them: metadata, and a page with what was recorded.

Nothing in them is a path of this machine: of a corpus on a disk there is the last part of its name.
"""

import json
from math import isfinite, nan
from pathlib import Path
from typing import Any

from bert_pretrain.checkpoint.find import step_of
from bert_pretrain.data.shard_directory import read_manifest
from bert_pretrain.files.addresses import is_address
from bert_pretrain.hub.card_parts import (
    TAGS,
    cell,
    data_table,
    hub_ids,
    languages_of,
    licence_entries,
    limits,
    rendered,
    table,
    title_of,
    writer,
)
from bert_pretrain.hub.public_manifest import public_manifest
from bert_pretrain.options.stored_options import read_options, read_progress
from bert_pretrain.report.stored_run import Run, usable_rows, usable_sessions
from bert_pretrain.training.metrics import Row, perplexity

_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
          (10**8, "10M<n<100M"), (10**9, "100M<n<1B"))  # fmt: skip
CARD = "README.md"
"""The name of its file."""
_FILLS = ("BertForMaskedLM", "BertForPreTraining")
_METRICS = (("eval_mlm_loss", "loss", "MLM loss (nats)"), ("eval_mlm_accuracy", "accuracy", "MLM accuracy"))
"""Key in ``metrics.jsonl``, the hub's name of the metric, and what it is."""


def model_card(checkpoint: Path, name: str, licence: str | None, revision: str | None = None) -> str:
    """``README.md`` of the export of ``checkpoint``, which loads by ``name`` and the branch ``revision``.

    ``licence``: of the model, as the user states it.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    run = _run_at(checkpoint)
    sources = _sources(run)
    heldout = run.heldout[-1] if run.heldout else {}
    measured = {kind: (title, heldout[key]) for key, kind, title in _METRICS if isfinite(heldout.get(key, nan))}
    if "loss" in measured:
        measured["perplexity"] = ("perplexity of masked words", perplexity(measured["loss"][1]))
    results = [EvalResult("fill-mask", "held-out", "held-out samples", kind, round(value, 6), metric_name=title,
                          task_name="Masked language modelling", dataset_split="heldout")
               for kind, (title, value) in measured.items()]  # fmt: skip
    if isfinite(heldout.get("eval_nsp_accuracy", nan)):
        results.append(EvalResult("next-sentence-prediction", "held-out", "held-out samples", "accuracy",
                                  round(heldout["eval_nsp_accuracy"], 6), metric_name="next-sentence accuracy",
                                  task_name="Next-sentence prediction", dataset_split="heldout"))  # fmt: skip
    data = ModelCardData(
        model_name=title_of(name),
        language=languages_of(sources) or None,
        datasets=_dataset_ids(run, sources) or None,
        base_model=_base_model(run),
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=TAGS,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        eval_results=results or None,
        **licence_entries([licence or ""]),
    )
    page = [
        f"# {title_of(name)}",
        f"A BERT pretrained with bert-pretrain for {step_of(checkpoint):,} steps.",
        _usage(name, revision),
        limits(sources, "The model"),
        "## Training data\n\n" + data_table(sources, _dataset_ids(run, sources)),
        "## Training\n\n" + table(("", ""), _training(run, checkpoint)),
        "## Evaluation\n\n" + _evaluation(results),
        "## Environment\n\n" + table(("", ""), _environment(run)),
    ]  # fmt: skip
    return rendered(ModelCard, data, page)


def converted_card(
    name: str, licence: str | None, origin: str, architecture: str, config: str, notes: list[str], left_out: list[str]
) -> str:
    """``README.md`` of a conversion: the weights of ``origin`` as ``architecture``, with ``config.json`` as ``config``.

    ``notes``: what was decided, in sentences; ``left_out``: names of what is only in the checkpoint.
    """
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        model_name=title_of(name),
        library_name="transformers",
        pipeline_tag="fill-mask" if architecture in _FILLS else None,
        tags=TAGS,
        **licence_entries([licence or ""]),
    )
    page = [
        f"# {title_of(name)}",
        f"Converted by bert-pretrain convert from {cell(origin)} to {architecture}.",
        *(f"{note[0].upper()}{note[1:]}." for note in notes),
        _usage(name, architecture=architecture),
        "## Left out\n\n" + ("\n".join(f"- `{cell(one)}`" for one in left_out) or "Nothing."),
        f"## Configuration\n\n```json\n{config}\n```",
        "## Environment\n\n" + table(("", ""), [writer()]),
    ]  # fmt: skip
    return rendered(ModelCard, data, page)


def dataset_card(manifest: dict[str, Any], repo: str, licence: str | None) -> str:
    """``README.md`` of the shards with ``manifest``, of :func:`public_manifest`, in the data set ``repo``."""
    from huggingface_hub import DatasetCard, DatasetCardData

    sources = manifest.get("sources", [])
    samples = {"train": 0, "heldout": 0}
    for row in manifest["shards"]:
        samples[row["split"]] += row["samples"]
    length = manifest["sequence_length"]
    words = manifest["tokenizer"]["vocab_size"]
    total, languages = sum(samples.values()), languages_of(sources)
    files = [{"split": split, "path": f"{split}_*.hdf5"} for split, count in samples.items() if count]
    data = DatasetCardData(
        pretty_name=title_of(repo),
        language=languages or None,
        multilinguality=("multilingual" if len(languages) > 1 else "monolingual") if languages else None,
        task_categories=["fill-mask"],
        size_categories=next((size for most, size in _SIZES if total < most), "n>1B"),
        source_datasets=hub_ids([source["name"] for source in sources]) or None,
        tags=TAGS,
        configs=[{"config_name": "default", "data_files": files}],
        **licence_entries([licence] if licence else [source.get("licence") or "" for source in sources]),
    )
    made = manifest.get("options", {})
    facts = [
        ("samples", ", ".join(f"{count:,} {split}" for split, count in samples.items())),
        ("tokens of a sample", f"up to {length}, of them up to {manifest['max_predictions']} masked"),
        ("vocabulary", f"{words:,} tokens, in `tokenizer/`"),
        *((name.replace("_", " "), str(made[name])) for name in
          ("sample_kind", "masked_lm_prob", "whole_word_masking", "dupe_factor", "short_seq_prob", "seed")
          if name in made),
        *((name, str(version)) for name, version in manifest.get("versions", {}).items()),
    ]  # fmt: skip
    page = [
        f"# {title_of(repo)}",
        "Shards to pretrain a BERT on: samples of token ids with masked words, in HDF5.",
        f"## Usage\n\n```bash\nbert-pretrain pretrain data.dir=hf://datasets/{repo} "
        f"data.sequence_length={length} model.vocab_size={words}\n```",
        limits(sources, "A model that is trained on these shards"),
        "## Sources\n\n" + data_table(sources),
        "## Preparation\n\n" + table(("", ""), facts),
    ]  # fmt: skip
    return rendered(DatasetCard, data, page)


def _run_at(checkpoint: Path) -> Run:
    """The run as it was when it wrote ``checkpoint``."""
    directory, step = checkpoint.parent.parent, step_of(checkpoint)
    rows = [
        row
        for row in usable_rows(directory)
        if row["step"] <= step and ("eval_mlm_loss" not in row or row["step"] == step)
    ]
    return Run(directory, read_options(checkpoint / "config.yaml"), rows, usable_sessions(directory), False, 0.0)


def _sources(run: Run) -> list[Row]:
    """The sources of the shards, with public names; empty if their manifest is not on this machine."""
    manifests = [read_manifest(Path(place)) or {} for place in _places(run) if Path(place).is_dir()]
    return [source for manifest in manifests for source in public_manifest(manifest).get("sources", [])]


def _dataset_ids(run: Run, sources: list[Row]) -> list[str]:
    """The data sets of the hub that the run read, itself or in its shards."""
    places = [place for place in _places(run) if is_address(place)]
    return hub_ids([*places, *(source["name"] for source in sources)])


def _places(run: Run) -> list[str]:
    """The ``data.dir`` of the run, and those of its mixture."""
    return [run.options["data"]["dir"], *(run.options["data"].get("mix") or {}).values()]


def _base_model(run: Run) -> str | None:
    """The model of the hub that the weights are from, as the run noted when it began (``hub.source.hub_base``)."""
    return run.sessions[0].get("base_model") if run.sessions else None


def _usage(name: str, revision: str | None = None, architecture: str = "BertForMaskedLM") -> str:
    """A fenced example: words filled in, or the vectors of a model without a masked-word head."""
    quoted = json.dumps(name, ensure_ascii=False)
    more = f', revision="{revision}"' if revision else ""
    if architecture not in _FILLS:
        code = f"from transformers import {architecture}\nmodel = {architecture}.from_pretrained({quoted}{more})"
    else:
        code = (
            f'from transformers import pipeline\nfill = pipeline("fill-mask", model={quoted}{more})\n'
            'print(fill(f"The {fill.tokenizer.mask_token} was closed."))'
        )
    return f"## Usage\n\n```python\n{code}\n```"


def _training(run: Run, checkpoint: Path) -> list[tuple[str, ...]]:
    """What the run did up to ``checkpoint``, and the options that decide on its result."""
    options = run.options
    progress = read_progress(checkpoint / "progress.json")
    optimizer = options["optimizer"]
    data = options["data"]
    schedule = options["schedule"]
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
    source = options.get("init_from")
    batch = options["batch"]["global_batch_size"]
    return [
        ("steps", f"{progress['step']:,} of {schedule['total_steps']:,}"),
        ("samples", f"{progress['samples_seen']:,}"),
        ("tokens", f"{progress['tokens_seen']:,}"),
        ("global batch", f"{batch:,} samples of up to {data['sequence_length']} tokens"),
        ("masks", f"{data['masking']}, share {data.get('masked_lm_prob') or 'as in the shards'}"),
        *((name.replace("_", " "), f"{options['model'][name]:,}") for name in names if options["model"].get(name)),
        ("first weights", (_base_model(run) or Path(source).name) if source else "random"),
        *((name.replace("_", " "), str(value)) for name, value in [*optimizer.items(), *schedule.items()]
          if value is not None and name != "total_steps" and not isinstance(value, dict)),
        ("seed", str(options["seed"])),
    ]  # fmt: skip


def _evaluation(results: list[Any]) -> str:
    if not results:
        return "This checkpoint was not evaluated."
    rows = [(result.metric_name, f"{result.metric_value:.4f}") for result in results]
    return "On samples that were held out of the training text:\n\n" + table(("metric", "value"), rows)


def _environment(run: Run) -> list[tuple[str, ...]]:
    """Where the run was trained, and what wrote this card."""
    found = [writer()]
    if session := run.last_session:
        versions = dict.fromkeys(str(one["version"]) for one in run.sessions)
        found += [
            ("trained by", f"bert-pretrain, {', '.join(versions)}"),
            ("torch", str(session["torch"])),
            ("device", f"{session['ranks']} x {session['device']}, {session['compute']}"),
        ]
    if (rate := run.tokens_per_second()) is not None:
        found.append(("real tokens per second, median", f"{rate:,.0f}"))
    return found
