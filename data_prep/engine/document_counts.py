"""Whether a preparation has documents enough, in all and of each split."""

from bert_pretrain.data.shard_directory import SPLITS
from bert_pretrain.errors import ConfigError
from data_prep.corpus import no_text
from data_prep.engine.local import Record
from data_prep.options import PrepareConfig


def check_documents(config: PrepareConfig, counts: Record) -> None:
    """Raise ``ConfigError`` unless the text stage, with the counts ``counts``, has found documents enough."""
    if counts["documents"] == 0:
        raise ConfigError(no_text(config.corpus, counts["dropped"]))
    if counts["documents"] < _fewest_documents(config):
        raise ConfigError(
            "the corpus is one document only, but a random next segment needs another document; give more files, "
            "divide it with corpus.documents (file, blank_line), or give sample_kind=single"
        )


def _fewest_documents(config: PrepareConfig) -> int:
    """Of a split: with pairs, a random next segment comes from another document."""
    return 2 if config.sample_kind == "pair" else 1


def splits_with_documents(config: PrepareConfig, counts: Record, is_append: bool) -> list[str]:
    """The splits that get samples, by the counts of the documents that are encoded.

    Raises ``ConfigError`` if one has too few documents. An append may have none of a split, or of both, and leaves out
    a held-out one that is alone.
    """
    held, fewest = counts["heldout_documents"], _fewest_documents(config)
    training = counts["documents"] - held
    if training >= fewest and (config.heldout_fraction == 0 or held >= fewest):
        return list(SPLITS)
    if is_append:
        if 0 < training < fewest:
            raise ConfigError(
                f"of the {counts['documents']} new documents 1 is for training, but a random next segment comes from "
                "another document; append more documents at once"
            )
        if 0 < held < fewest:
            print("      1 new document is held out, and left out: a random next segment needs another one")
        return [split for split, count in zip(SPLITS, (training, held), strict=True) if count >= fewest]
    pairs = "because a random next segment comes from another document"
    reason = pairs if fewest == 2 else "because documents stay whole"
    other = f"such as {min(0.5, 5 / counts['documents']):.2g}, " if counts["documents"] > 2 * fewest else ""
    raise ConfigError(
        f"heldout_fraction is {config.heldout_fraction}, which leaves {training} documents for training and {held} "
        f"held out of {counts['documents']}; both need {fewest} or more, {reason}: give another "
        f"heldout_fraction ({other}0: no held-out shards), more documents, or another seed"
    )
