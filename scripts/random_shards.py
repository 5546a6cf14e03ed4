"""Shards of random words, for measurements where no corpus is at hand: they take seconds.

    python scripts/random_shards.py OUT_DIR VOCABULARY_SIZE LENGTH SAMPLES

Word frequencies follow Zipf's law, so that a model can learn something. Nine samples of ten are full, as ``prepare``
makes them of long documents; the tenth has a random length. 15 % of the tokens are masked.
"""

from pathlib import Path

import numpy as np
import repository_root  # noqa: F401  makes bert_pretrain importable
from results_file import argument_parser

from bert_pretrain.data.masking_rule import SPECIAL_TOKENS
from bert_pretrain.data.shard_directory import write_manifest
from bert_pretrain.data.shards import Arrays, ShardHeader, write_shard
from data_prep.samples.tokenizer import load_vocabulary, write_tokenizer

_SPECIAL = len(SPECIAL_TOKENS)
_CLS, _SEP, _MASK = (SPECIAL_TOKENS.index(token) for token in ("[CLS]", "[SEP]", "[MASK]"))
_MASKED_SHARE = 0.15


def random_samples(rng: np.random.Generator, vocab_size: int, length: int, samples: int) -> Arrays:
    """Masked samples (samples, length): [CLS] words [SEP] words [SEP]."""
    frequency = np.cumsum(1 / np.arange(1, vocab_size - _SPECIAL + 1))
    words = np.searchsorted(frequency, rng.random((samples, length)) * frequency[-1]) + _SPECIAL
    lengths = np.where(rng.random(samples) < 0.9, length, rng.integers(8, length + 1, samples))
    columns, rows = np.arange(length), np.arange(samples)
    mask = columns < lengths[:, None]
    ids = words * mask
    ids[:, 0], ids[rows, lengths // 2], ids[rows, lengths - 1] = _CLS, _SEP, _SEP
    # The predicted positions: those with the smallest random numbers of each sample.
    score = np.where(ids >= _SPECIAL, rng.random(ids.shape), 2.0)
    most = round(_MASKED_SHARE * length)
    positions = np.argsort(score, 1)[:, :most]
    used = np.arange(most) < np.maximum(1, np.round(_MASKED_SHARE * lengths))[:, None]
    positions = np.sort(np.where(used, positions, length), 1)
    used = positions < length
    positions *= used
    labels = np.take_along_axis(ids, positions, 1) * used
    drawn = rng.random(labels.shape)
    shown = np.where(
        drawn < 0.8, _MASK, np.where(drawn < 0.9, rng.integers(_SPECIAL, vocab_size, labels.shape), labels)
    )
    np.put_along_axis(
        ids, positions, np.where(used, shown, _CLS), 1
    )  # position 0, where nothing is predicted, is [CLS]
    return {
        "input_ids": ids,
        "input_mask": mask.astype(np.int64),
        "segment_ids": ((columns > lengths[:, None] // 2) & mask).astype(np.int64),
        "masked_lm_positions": positions,
        "masked_lm_ids": labels,
        "next_sentence_labels": rng.integers(0, 2, samples),
    }


def write_random_shards(directory: Path, vocab_size: int, length: int, samples: int, seed: int = 0) -> None:
    """A directory of one training shard, with a tokenizer."""
    directory.mkdir(parents=True)
    words = [*SPECIAL_TOKENS, *(f"word{number}" for number in range(vocab_size - _SPECIAL))]
    text = directory / "vocab.txt"
    text.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    vocabulary = load_vocabulary(text)
    write_tokenizer(vocabulary, directory / "tokenizer")
    arrays = random_samples(np.random.default_rng(seed), vocab_size, length, samples)
    header = ShardHeader(
        sequence_length=length,
        max_predictions=arrays["masked_lm_ids"].shape[1],
        vocab_size=vocab_size,
        vocab_hash=vocabulary.vocab_hash,
        tokenizer_hash=vocabulary.tokenizer_hash,
        masked_lm_prob=_MASKED_SHARE,
        whole_word_masking=False,
        short_seq_prob=0.1,
        dupe_factor=1,
        seed=seed,
        split="train",
    )
    write_manifest(directory, {"shards": [write_shard(directory / "train_00000.hdf5", arrays, header)]})


def main() -> None:
    """Write the shards."""
    parser = argument_parser(__doc__)
    parser.add_argument("out_dir", type=Path)
    for name in ("vocab_size", "length", "samples"):
        parser.add_argument(name, type=int)
    given = parser.parse_args()
    write_random_shards(given.out_dir, given.vocab_size, given.length, given.samples)


if __name__ == "__main__":
    main()
