"""Predicts the most likely tokens for each [MASK], with an exported model."""

from dataclasses import dataclass
from typing import Any

from bert_pretrain.data.tokenizer_files import has_tokenizer
from bert_pretrain.errors import ConfigError, on_one_line, require
from bert_pretrain.files.hub_download import local_model
from bert_pretrain.options.entry_point import entry_point


@dataclass
class FillMaskConfig:
    """Options of ``bert-pretrain fill-mask``."""

    model_dir: str
    """A folder written by bert-pretrain export, any other BERT that transformers loads, or a name on the hub."""
    sentences: list[str]
    """Sentences, each with one or more [MASK]."""
    top: int
    """Number of tokens to print for each [MASK]."""

    def __post_init__(self) -> None:
        require(self.top >= 1, "top", self.top, "1 or more")
        require(bool(self.sentences), "sentences", self.sentences, "one or more")


@entry_point("fill_mask", FillMaskConfig)
def main(config: FillMaskConfig) -> None:
    """Print the most likely tokens for each [MASK] of some sentences.

        bert-pretrain fill-mask model_dir=my-bert 'sentences=["The capital of France is [MASK]."]'

    Prints each sentence, and below it one line per [MASK] with the tokens and their probabilities.
    """
    tokenizer, model = load(config.model_dir)
    encoded = [encode(tokenizer, sentence, model.config) for sentence in config.sentences]
    words = sum(number < model.config.vocab_size for number in tokenizer.get_vocab().values())
    require(config.top <= words, "top", config.top, f"1 to {words}, the vocabulary of model_dir")
    for sentence, inputs in zip(config.sentences, encoded, strict=True):
        print(sentence)
        for found in fill(model, tokenizer, inputs, config.top):
            print("    " + "   ".join(f"{word} {probability:.2f}" for word, probability in found))


def load(model_dir: str) -> tuple[Any, Any]:
    """Tokenizer and masked language model that ``model_dir`` names. Raises ``ConfigError`` if it lacks either."""
    folder = local_model(model_dir, "model_dir")
    if not (folder / "config.json").exists():
        raise ConfigError(
            f"model_dir is {model_dir!r}, which is no exported folder; make one with bert-pretrain export"
        )
    if not has_tokenizer(folder):
        raise ConfigError(
            f"model_dir {model_dir} has no tokenizer (tokenizer.json or vocab.txt); copy that of its run into it, from "
            "the folder tokenizer beside the shards"
        )
    from safetensors import SafetensorError
    from transformers import AutoModelForMaskedLM, AutoTokenizer  # imports torch

    from bert_pretrain.model.bert import silence_transformers

    silence_transformers()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model, report = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=False, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = on_one_line(error)
        raise ConfigError(f"model_dir {model_dir} does not load ({reason}); export it again") from None
    lacks = sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])})
    if lacks:
        raise ConfigError(
            f"model_dir {model_dir} lacks weights, such as {lacks[0]}: its predictions would be random; give a model "
            "with a masked-LM head"
        )
    if tokenizer.mask_token is None:
        raise ConfigError(f"model_dir {model_dir}: its tokenizer has no mask token; give a masked language model")
    return tokenizer, model.eval()


def encode(tokenizer: Any, sentence: str, config: Any) -> dict[str, Any]:
    """The model's inputs, (1, tokens). Raises ``ConfigError`` for a sentence without [MASK] or with too many tokens."""
    encoded = tokenizer(sentence, return_tensors="pt")
    ids = encoded["input_ids"][0]
    positions = config.max_position_embeddings
    if "roberta" in config.model_type:  # counts positions from behind the padding's
        positions -= config.pad_token_id + 1
    if not (ids == tokenizer.mask_token_id).any():
        found = "is empty" if not sentence.strip() else f"has no {tokenizer.mask_token}"
        raise ConfigError(f"sentences: {sentence!r} {found}; put {tokenizer.mask_token} in place of a word")
    if len(ids) > positions:
        raise ConfigError(
            f"sentences: {sentence[:40]!r}... has {len(ids)} tokens; allowed: up to {positions}, the positions of "
            "model_dir; cut it around its mask"
        )
    if int(ids.max()) >= config.vocab_size:
        raise ConfigError(
            f"sentences: {sentence[:40]!r} has a token that model_dir has no embedding for; export it again"
        )
    return dict(encoded)


def fill(model: Any, tokenizer: Any, inputs: dict[str, Any], top: int) -> list[list[tuple[str, float]]]:
    """For each [MASK] of ``inputs``: the ``top`` tokens and their probabilities, best first.

    Ids without a token, such as the padding of a vocabulary, do not count.
    """
    import torch

    ids = torch.tensor(sorted(number for number in tokenizer.get_vocab().values() if number < model.config.vocab_size))
    masks = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero().squeeze(1)
    with torch.no_grad():
        best = model(**inputs).logits[0, masks][:, ids].softmax(-1).topk(top)
    return [
        [(tokenizer.convert_ids_to_tokens(int(ids[i])), float(p)) for i, p in zip(places, values, strict=True)]
        for places, values in zip(best.indices, best.values, strict=True)
    ]


if __name__ == "__main__":
    main()
