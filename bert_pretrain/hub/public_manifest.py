"""The manifest of shards as it may be published: no path of this machine, and no text of the corpus."""

import re
from pathlib import Path
from typing import Any

from bert_pretrain.files.addresses import is_address, without_secrets

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def public_manifest(manifest: dict[str, Any]) -> dict[str, Any]:
    """``manifest`` without paths of this machine, and without the pieces of text that it has as examples."""
    options = [manifest.get("options", {}), *manifest.get("appended", [])]
    kinds = {name: corpus.get("kind") for of_set in options for name, corpus in _corpora(of_set).items()}
    sources = [{**source, "name": public_name(source["name"], kinds.get(source.get("corpus", "corpus")))}
               for source in manifest.get("sources", [])]  # fmt: skip
    public = {**manifest, "sources": sources}
    if "stages" in manifest:
        public["stages"] = [{"stage": stage["stage"], **_counts(stage)} for stage in manifest["stages"]]
    if "options" in manifest:
        public["options"] = _public_options(manifest["options"])
    if "appended" in manifest:
        public["appended"] = [_public_options(options) for options in manifest["appended"]]
    return public


def public_name(name: str, kind: str | None) -> str:
    """The name of a corpus of ``kind``: a package's, an address, one on the hub, or the last part of a path."""
    if is_address(name):
        return without_secrets(name)
    on_hub = kind == "dataset" and _HUB_NAME.fullmatch(name) and not Path(name).exists()
    return name if on_hub else Path(name).name


def _corpora(options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {**({"corpus": options["corpus"]} if "corpus" in options else {}), **options.get("mix", {})}


def _public_options(options: dict[str, Any]) -> dict[str, Any]:
    def public(corpus: dict[str, Any]) -> dict[str, Any]:
        path, rule = corpus.get("path"), corpus.get("rule")
        return {**corpus, "path": path and public_name(path, corpus["kind"]), "rule": rule and Path(rule).name}

    found = {**options, "mix": {name: public(corpus) for name, corpus in options.get("mix", {}).items()}}
    if "corpus" in options:
        found["corpus"] = public(options["corpus"])
    return found | {name: Path(options[name]).name for name in ("vocab", "vocab_add") if options.get(name)}


def _counts(value: dict[str, Any]) -> dict[str, Any]:
    """The numbers in ``value`` and in what it holds."""
    return {
        key: _counts(found) if isinstance(found, dict) else found
        for key, found in value.items()
        if isinstance(found, dict | int | float) and key != "examples"
    }
