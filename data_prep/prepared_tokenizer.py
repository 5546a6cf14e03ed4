"""The tokenizer of a preparation: trained on its text, or given, with the words that are to be added."""

from functools import partial
from pathlib import Path

from bert_pretrain.errors import ConfigError
from data_prep.engine.local import Record
from data_prep.engine.stages import training_text
from data_prep.options import PrepareConfig
from data_prep.samples.added_words import add_words, choose_words, read_words
from data_prep.samples.tokenizer import Letters, Vocabulary, train_vocabulary, write_tokenizer
from data_prep.text.duplicates import TextPart

_SHOWN_WORDS = 10
_MANY_UNKNOWN = 0.005  # share of the tokens


def make_tokenizer(
    config: PrepareConfig, given: Vocabulary | None, parts: list[TextPart], repeats: Path, folder: Path, before: Path
) -> Record:
    """Write the tokenizer to ``folder``, and to ``before`` as it was before words were added, if any are.

    ``repeats``: the folder of the repeated documents. Returns the counts of the stage.
    """
    most = config.vocab_text_mb * 1e6
    if given is None:
        rules = Letters(config.lowercase, config.strip_accents, config.alphabet_coverage)
        text = partial(training_text, parts, repeats, most, config.seed)
        trained = train_vocabulary(text, config.vocab_size, rules)
        write_tokenizer(trained, folder)
        if len(trained.tokens) == config.vocab_size:
            return {"vocabulary": len(trained.tokens)}
        warning = (
            f"the vocabulary has {len(trained.tokens):,} entries, not the {config.vocab_size:,} of vocab_size: the "
            "text holds no more letters and parts of words"
        )
        return {"vocabulary": len(trained.tokens), "warnings": [warning]}
    if not config.vocab_add and not config.vocab_add_count:
        write_tokenizer(given, folder)
        return {"vocabulary": len(given.tokens)}
    wanted = read_words(Path(config.vocab_add), given) if config.vocab_add else []
    words = choose_words(
        given,
        training_text(parts, repeats, most, config.seed, config.heldout_fraction),
        wanted,
        config.vocab_add_count or 0,
    )
    write_tokenizer(given, before)
    vocabulary = add_words(given, words, str(config.vocab))
    best = sorted(words, key=lambda word: (-word.saved, word.word))[:_SHOWN_WORDS]
    print("      " + ", ".join(f"{word.word} saves {word.saved:,} pieces" for word in best))
    write_tokenizer(vocabulary, folder)
    return {"vocabulary": len(vocabulary.tokens), **({"added_words": len(words)} if words else {})}


def warn_of_unknown(shares: dict[str, dict[str, dict[str, float]]], config: PrepareConfig) -> list[str]:
    """A line for each split of which many tokens are unknown; ``shares``: of ``piece_shares``.

    Raises ``ConfigError`` if all are: nothing could be masked.
    """
    advice = "give the vocab of another model, or add words to it (vocab_add_count)"
    if config.vocab is None:
        advice = f"raise alphabet_coverage (it is {config.alphabet_coverage}) or vocab_size"
    if any(of_split and of_split["after"]["unknown_share"] == 1 for of_split in shares.values()):
        raise ConfigError(f"vocab {config.vocab}: all tokens of the text are unknown ([UNK]); {advice}")
    return [
        f"{found:.2%} of the {split} tokens are unknown ([UNK]); {advice}"
        for split, of_split in shares.items()
        if of_split and (found := of_split["after"]["unknown_share"]) > _MANY_UNKNOWN
    ]
