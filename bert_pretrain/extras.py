"""The optional packages, by the extra of ``pip install`` that brings them."""

from bert_pretrain.errors import ConfigError

EXTRAS = {
    "data": ("bokeh", "distributed", "mwparserfromhell", "py3langid", "rensa", "sentencex", "zstandard"),
    "finetune": ("accelerate", "scipy", "sklearn"),
}


def missing_extra(error: ModuleNotFoundError) -> ConfigError | None:
    """What to tell the user if ``error`` is about an optional package; None if it is about another."""
    package = (error.name or "").partition(".")[0]
    for extra, packages in EXTRAS.items():
        if package in packages:
            return ConfigError(
                f"this needs the package {package}, which is not installed: pip install 'bert-pretrain[{extra}]'"
            )
    return None
