"""Predicts the most likely tokens for each [MASK], with an exported model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_pretrain.config_loading import entry_point
from bert_pretrain.errors import ConfigError, require


@dataclass
class FillMaskConfig:
    """Options of ``bert-pretrain fill-mask``."""

    model_dir: str
    """A folder written by bert-pretrain export, or any other BERT that transformers loads."""
    sentences: list[str]
    """Sentences, each with one or more [MASK]."""
    top: int
    """Number of tokens to print for each [MASK]."""

    def __post_init__(self) -> None:
        require(self.top >= 1, "top", self.top, "1 or more")


@entry_point("fill_mask", FillMaskConfig)
def main(config: FillMaskConfig) -> None:
    """Print the most likely tokens for each [MASK] of some sentences.

        bert-pretrain fill-mask model_dir=my-bert 'sentences=["The capital of France is [MASK]."]'

    Prints each sentence, and below it one line per [MASK] with the tokens and their probabilities.
    """
    if not (Path(config.model_dir) / "config.json").exists():
        raise ConfigError(
            f"model_dir is {config.model_dir!r}, which is no exported folder; make one with bert-pretrain export"
        )
    from transformers import AutoModelForMaskedLM, AutoTokenizer  # imports torch

    from bert_pretrain.model.bert import silence_transformers

    silence_transformers()
    tokenizer = AutoTokenizer.from_pretrained(config.model_dir)
    model = AutoModelForMaskedLM.from_pretrained(config.model_dir).eval()
    for sentence in config.sentences:
        print(sentence)
        for words in fill(model, tokenizer, sentence, config.top):
            print("    " + "   ".join(f"{word} {probability:.2f}" for word, probability in words))


def fill(model: Any, tokenizer: Any, sentence: str, top: int) -> list[list[tuple[str, float]]]:
    """For each [MASK] of ``sentence``: the ``top`` tokens and their probabilities, best first."""
    encoded = tokenizer(sentence, return_tensors="pt")
    positions = (encoded["input_ids"][0] == tokenizer.mask_token_id).nonzero().squeeze(1)
    if len(positions) == 0:
        raise ConfigError(f"sentences: {sentence!r} has no {tokenizer.mask_token}; put one in place of a word")
    logits = model(**encoded).logits.detach()[0, positions, : len(tokenizer)]  # without padding of the vocabulary
    best = logits.softmax(-1).topk(top)
    return [
        [(str(tokenizer.convert_ids_to_tokens(int(i))), float(p)) for i, p in zip(ids, values, strict=True)]
        for ids, values in zip(best.indices, best.values, strict=True)
    ]


if __name__ == "__main__":
    main()
