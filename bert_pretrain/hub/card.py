"""The cards of a model and of shards, as the hub reads them: metadata, and a page with what was recorded.

Nothing in them is a path of this machine: of a corpus on a disk there is the last part of its name.
"""

import re
from collections.abc import Sequence
from math import exp
from pathlib import Path
from statistics import median
from typing import Any

from bert_pretrain.addresses import is_address
from bert_pretrain.checkpoint.find import step_of
from bert_pretrain.data.shard_directory import read_manifest
from bert_pretrain.hub.public_manifest import public_manifest, public_name
from bert_pretrain.program import commit, release
from bert_pretrain.report.run_facts import Run
from bert_pretrain.stored_options import read_options, read_progress
from bert_pretrain.training.metrics import Row, read_rows
from bert_pretrain.training.sessions import METRICS, read_sessions

_LICENCE = re.compile(
    r"apache-2\.0|mit|openrail|afl-3\.0|artistic-2\.0|bsl-1\.0|bsd(-[23]-clause)?|bsd-3-clause-clear|c-uda|cc|cc0-1\.0|"
    r"cc-by-2\.[05]|cc-by(-nc)?(-sa)?-[34]\.0|cc-by-nc(-sa)?-2\.0|cc-by-nc-nd-[34]\.0|cc-by-nd-4\.0|cdla-sharing-1\.0|"
    r"cdla-permissive-[12]\.0|wtfpl|ecl-2\.0|epl-[12]\.0|etalab-2\.0|eupl-1\.[12]|agpl-3\.0|gfdl|gpl(-[23]\.0)?|"
    r"lgpl(-2\.1|-3\.0|-lr)?|isc|lppl-1\.3c|ms-pl|mpl-2\.0|odc-by|odbl|osl-3\.0|postgresql|ofl-1\.1|ncsa|unlicense|"
    r"zlib|pddl|unknown"
)
"""The names that the hub has for licences (huggingface.co/docs/hub/repositories-licenses); others are ``other``."""
_HUB_ID = re.compile(r"(?:hf://(?:datasets/)?([\w.-]+/[\w.-]+).*|([\w.-]+/[\w.-]+))")
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
          (10**8, "10M<n<100M"), (10**9, "100M<n<1B"))  # fmt: skip
_PAGE = "---\n{{ card_data }}\n---\n\n{{ page }}\n"
_METRICS = (("eval_mlm_loss", "loss", "MLM loss (nats)"), ("eval_mlm_accuracy", "accuracy", "MLM accuracy"))
"""Key in ``metrics.jsonl``, the hub's name of the metric, and what it is."""


def model_card(checkpoint: Path, name: str, licence: str | None, revision: str | None = None) -> str:
    """``README.md`` of the export of ``checkpoint``, which loads by ``name`` and the branch ``revision``.

    ``licence``: of the model, as the user states it.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    run = _run_at(checkpoint)
    sources, heldout = _sources(run), run.heldout[-1] if run.heldout else {}
    measured = {kind: (title, heldout[key]) for key, kind, title in _METRICS if key in heldout}
    if "loss" in measured:
        measured["perplexity"] = ("perplexity of masked words", exp(min(measured["loss"][1], 700.0)))
    results = [EvalResult("fill-mask", "held-out", "held-out samples", kind, round(value, 6), metric_name=title,
                          task_name="Masked language modelling", dataset_split="heldout")
               for kind, (title, value) in measured.items()]  # fmt: skip
    if "eval_nsp_accuracy" in heldout:
        results.append(EvalResult("next-sentence-prediction", "held-out", "held-out samples", "accuracy",
                                  round(heldout["eval_nsp_accuracy"], 6), metric_name="next-sentence accuracy",
                                  task_name="Next-sentence prediction", dataset_split="heldout"))  # fmt: skip
    data = ModelCardData(
        model_name=name.rpartition("/")[2],
        language=_languages(sources) or None,
        datasets=_dataset_ids(run, sources) or None,
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=["bert", "masked-lm", "pretraining", "bert-pretrain"],
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        eval_results=results or None,
        **_licence_entries([licence] if licence else []),
    )
    page = "\n\n".join([
        f"# {name.rpartition('/')[2]}",
        f"A BERT pretrained with bert-pretrain for {step_of(checkpoint):,} steps.",
        f"## Usage\n\n```python\n{_usage(name, revision)}\n```",
        _limits(sources, "The model"),
        "## Training data\n\n" + _data_table(sources, _dataset_ids(run, sources)),
        "## Training\n\n" + _table(("", ""), _training(run, checkpoint)),
        "## Evaluation\n\n" + _evaluation(results),
        "## Environment\n\n" + _table(("", ""), _environment(run)),
    ])  # fmt: skip
    return str(ModelCard.from_template(data, template_str=_PAGE, page=page))


def dataset_card(manifest: dict[str, Any], repo: str, licence: str | None) -> str:
    """``README.md`` of the shards with ``manifest``, of :func:`public_manifest`, in the data set ``repo``."""
    from huggingface_hub import DatasetCard, DatasetCardData

    sources, samples = manifest.get("sources", []), {"train": 0, "heldout": 0}
    for row in manifest["shards"]:
        samples[row["split"]] += row["samples"]
    length, words = manifest["sequence_length"], manifest["tokenizer"]["vocab_size"]
    total, languages = sum(samples.values()), _languages(sources)
    files = [{"split": split, "path": f"{split}_*.hdf5"} for split, count in samples.items() if count]
    data = DatasetCardData(
        pretty_name=repo.rpartition("/")[2],
        language=languages or None,
        multilinguality=("multilingual" if len(languages) > 1 else "monolingual") if languages else None,
        task_categories=["fill-mask"],
        size_categories=next((size for most, size in _SIZES if total < most), "n>1B"),
        source_datasets=_hub_ids([source["name"] for source in sources]) or None,
        tags=["bert", "masked-lm", "pretraining", "bert-pretrain"],
        configs=[{"config_name": "default", "data_files": files}],
        **_licence_entries([licence] if licence else [source["licence"] for source in sources]),
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
    page = "\n\n".join([
        f"# {repo.rpartition('/')[2]}",
        "Shards to pretrain a BERT on: samples of token ids with masked words, in HDF5.",
        f"## Usage\n\n```bash\nbert-pretrain pretrain data.dir=hf://datasets/{repo} "
        f"data.sequence_length={length} model.vocab_size={words}\n```",
        _limits(sources, "A model that is trained on these shards"),
        "## Sources\n\n" + _data_table(sources),
        "## Preparation\n\n" + _table(("", ""), facts),
    ])  # fmt: skip
    return str(DatasetCard.from_template(data, template_str=_PAGE, page=page))


def _run_at(checkpoint: Path) -> Run:
    """The run as it was when it wrote ``checkpoint``."""
    directory, step = checkpoint.parent.parent, step_of(checkpoint)
    rows = read_rows(directory / METRICS) if (directory / METRICS).exists() else []
    rows = [row for row in rows if row["step"] <= step and ("eval_mlm_loss" not in row or row["step"] == step)]
    return Run(directory, read_options(checkpoint / "config.yaml"), rows, read_sessions(directory), False, 0.0)


def _sources(run: Run) -> list[Row]:
    """The sources of the shards, with public names; empty if their manifest is not on this machine."""
    manifests = [read_manifest(Path(place)) or {} for place in _places(run) if Path(place).is_dir()]
    return [source for manifest in manifests for source in public_manifest(manifest).get("sources", [])]


def _dataset_ids(run: Run, sources: list[Row]) -> list[str]:
    """The data sets of the hub that the run read, itself or in its shards."""
    places = [place for place in _places(run) if is_address(place)]
    return _hub_ids([*places, *(source["name"] for source in sources)])


def _hub_ids(names: list[str]) -> list[str]:
    """The data sets of the hub among public names and addresses."""
    found = [match[1] or match[2] for name in names if (match := _HUB_ID.fullmatch(name))]
    return list(dict.fromkeys(found))


def _places(run: Run) -> list[str]:
    """The ``data.dir`` of the run, and those of its mixture."""
    return [run.options["data"]["dir"], *(run.options["data"].get("mix") or {}).values()]


def _languages(sources: list[Row]) -> list[str]:
    return list(dict.fromkeys(source["language"] for source in sources if source.get("language")))


def _licence_entries(stated: list[str]) -> dict[str, Any]:
    """The metadata for the licences ``stated``: the hub's names, and what has none there."""
    names = dict.fromkeys(
        "unknown" if name.startswith("not stated") else name.strip() for name in stated or ["unknown"]
    )
    others = [name for name in names if not _LICENCE.fullmatch(name.lower())]
    listed = [name.lower() for name in names if name not in others] + (["other"] if others else [])
    slug = re.sub(r"[^\w.+-]+", "-", others[0].lower()).strip("-") if len(others) == 1 else "several"
    return {
        "license": listed if len(listed) > 1 else listed[0],
        "license_name": slug if others else None,
    }


def _usage(name: str, revision: str | None) -> str:
    more = f', revision="{revision}"' if revision else ""
    return (
        f'from transformers import pipeline\nfill = pipeline("fill-mask", model="{name}"{more})\n'
        'print(fill(f"The {fill.tokenizer.mask_token} was closed."))'
    )


def _limits(sources: list[Row], model: str) -> str:
    """``model``: how the page calls the model that was trained on these sources."""
    languages = f" The language of that text: {', '.join(_languages(sources))}." if _languages(sources) else ""
    return (
        f"## Limits\n\n{model} has the errors and the bias of the text below, knows nothing that is not in it, and may "
        f"repeat parts of it.{languages} No use of it was tested: fine-tune it, and measure it on data of that use."
    )


def _data_table(sources: list[Row], datasets: Sequence[str] = ()) -> str:
    if not sources:
        named = ", ".join(f"[{name}](https://huggingface.co/datasets/{name})" for name in datasets)
        return named or "Not recorded: the manifest of the shards was not at hand when this card was written."
    titles = ("source", "version", "language", "licence", "documents", "characters")
    rows = [[str(source.get(title, "")) for title in ("name", *titles[1:4])] +
            [f"{source[title]:,}" for title in titles[4:]] for source in sources]  # fmt: skip
    return _table(titles, rows)


def _training(run: Run, checkpoint: Path) -> list[tuple[str, ...]]:
    """What the run did up to ``checkpoint``, and the options that decide on its result."""
    options, progress = run.options, read_progress(checkpoint / "progress.json")
    optimizer, data, schedule = options["optimizer"], options["data"], options["schedule"]
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
    source, batch = options.get("init_from"), options["batch"]["global_batch_size"]
    return [
        ("steps", f"{progress['step']:,} of {schedule['total_steps']:,}"),
        ("samples", f"{progress['samples_seen']:,}"),
        ("tokens", f"{progress['tokens_seen']:,}"),
        ("global batch", f"{batch:,} samples of up to {data['sequence_length']} tokens"),
        ("masks", f"{data['masking']}, share {data.get('masked_lm_prob') or 'as in the shards'}"),
        *((name.replace("_", " "), f"{options['model'][name]:,}") for name in names if options["model"].get(name)),
        ("first weights", public_name(source, "dataset") if source else "random"),
        *((name.replace("_", " "), str(value)) for name, value in [*optimizer.items(), *schedule.items()]
          if value is not None and name != "total_steps" and not isinstance(value, dict)),
        ("seed", str(options["seed"])),
    ]  # fmt: skip


def _evaluation(results: list[Any]) -> str:
    if not results:
        return "This checkpoint was not evaluated."
    rows = [(result.metric_name, f"{result.metric_value:.4f}") for result in results]
    return "On samples that were held out of the training text:\n\n" + _table(("metric", "value"), rows)


def _environment(run: Run) -> list[tuple[str, ...]]:
    """Where the run was trained, and what wrote this card."""
    known = commit()
    found: list[tuple[str, ...]] = [
        ("card written by", f"bert-pretrain {release()}" + (f", commit {known}" if known else ""))
    ]
    if session := run.last_session:
        versions = dict.fromkeys(str(one["version"]) for one in run.sessions)
        found += [
            ("trained by", f"bert-pretrain, {', '.join(versions)}"),
            ("torch", str(session["torch"])),
            ("device", f"{session['ranks']} x {session['device']}, {session['compute']}"),
        ]
    if rates := [row["tokens_per_second"] for row in run.training[1:] or run.training]:
        found.append(("real tokens per second, median", f"{median(rates):,.0f}"))
    return found


def _table(titles: tuple[str, ...], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, tuple("---" for _ in titles), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
