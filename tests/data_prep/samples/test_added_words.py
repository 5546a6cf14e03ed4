"""Words added to a tokenizer (old ids stay, transformers agrees), and preparations with unusual tokenizers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from bert_pretrain.data.dataset import check_vocabulary, open_split
from bert_pretrain.data.dynamic_masking import dynamic_masking
from bert_pretrain.data.masking_rule import restore_ids
from bert_pretrain.data.options import DataConfig
from bert_pretrain.data.shard_directory import read_manifest, shard_paths
from bert_pretrain.data.shards import ShardReader
from bert_pretrain.errors import ConfigError
from data_prep import prepare, verify
from data_prep.report import run as report
from data_prep.samples.added_words import AddedWord, add_words, choose_words, read_words
from data_prep.samples.given_tokenizer import given_vocabulary
from data_prep.samples.tokenizer import Vocabulary, write_tokenizer
from data_prep.samples.words import WordEncoder
from tests.data_prep.samples.test_given_tokenizer import MADE, SPECIAL, auto_ids, our_ids, text_only
from tests.data_prep.test_prepare import Run, options, run, write_texts

__all__ = ["run"]
LETTERS = [*"abcdeorsy", *(f"##{letter}" for letter in "abcdeorsy"), "##or", "."]


def given(folder: Path, **files: object) -> Vocabulary:
    text_only(folder, [*SPECIAL, *LETTERS], {"do_lower_case": True}, **files)
    return given_vocabulary(str(folder), True)


def test_the_words_that_save_the_most_pieces(tmp_path: Path) -> None:
    """Counted by hand: "odor" is o ##d ##or, so 4 of it save 8; "abed" saves 2 * 3; "bed" and "dab" 3 * 2 each."""
    vocabulary = given(tmp_path / "source")
    sentences = ["odor Odor odor. odor", "abed abed bed bed dab", "dab dab bed", "a a a zzz zzz zzz zzz zzz"]
    chosen = choose_words(vocabulary, sentences, ["bora"], 3)
    assert chosen == [AddedWord("bora", 0, 3), AddedWord("odor", 4, 3), AddedWord("abed", 2, 4), AddedWord("bed", 3, 3)]
    assert [word.saved for word in chosen] == [0, 8, 6, 6]
    assert [word.word for word in choose_words(vocabulary, sentences, [], 99)] == ["odor", "abed", "bed", "dab"]


def test_old_ids_stay_and_transformers_gives_the_new_ones(tmp_path: Path) -> None:
    """An added token above the WordPiece entries keeps its id, though the new words come behind it."""
    vocabulary = given(tmp_path / "source", added_tokens={"a b": len(SPECIAL + LETTERS)})
    added = add_words(vocabulary, [AddedWord("odor", 4, 3), AddedWord("ésé", 1, 1)], "x")
    assert added.tokens == [*vocabulary.tokens, "odor", "ésé"]
    assert added.roles == vocabulary.roles
    write_tokenizer(added, tmp_path / "tokenizer")
    lines = ["Odor odors a b abed", "bed odor.", "dab a b"]
    ids, old = auto_ids(tmp_path / "tokenizer", lines), our_ids(WordEncoder(vocabulary), lines)
    assert our_ids(WordEncoder(added), lines) == ids
    new = len(vocabulary.tokens)
    assert ids[0] == [new, new, vocabulary.tokens.index("##s"), new - 1, *old[0][-4:]]
    assert (ids[1][-2:], ids[2]) == ([new, vocabulary.tokens.index(".")], old[2])
    listed = (tmp_path / "tokenizer" / "added_words.tsv").read_text().splitlines()
    assert listed == ["word\tid\tcount\tpieces\tsaved", f"odor\t{new}\t4\t3\t8", f"ésé\t{new + 1}\t1\t1\t0"]


def test_a_file_of_words(tmp_path: Path) -> None:
    vocabulary = given(tmp_path / "source")
    path = tmp_path / "words.txt"
    path.write_text("\ufeffOdor\n\n  bed \r\nodor\na\n")
    assert read_words(path, vocabulary) == ["odor", "bed"]
    for text, message in (
        ("odor\nnew york\n", r"line 2: 'new york' is 2 words \(new \| york\)"),
        ("x" * 101, "line 1: .* is longer than 100 characters"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_words(path, vocabulary)
    path.write_bytes(b"a\xff")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 1"):
        read_words(path, vocabulary)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_words(tmp_path / "nowhere", vocabulary)


def test_prepare_adds_words(tmp_path: Path, run: Run) -> None:
    texts, out_dir = write_texts(tmp_path / "texts"), tmp_path / "out"
    given(tmp_path / "source")
    source = [*SPECIAL, *"abdegiklmnorstu.", *(f"##{letter}" for letter in "abdegiklmnorstu")]
    (tmp_path / "source" / "vocab.txt").write_text("".join(f"{token}\n" for token in source))
    (tmp_path / "words.txt").write_text("Zebra\n")
    wanted = [f"vocab={tmp_path / 'source'}", f"vocab_add={tmp_path / 'words.txt'}", "vocab_add_count=40"]
    printed = run(prepare, *options(texts, out_dir, *wanted, "sequence_lengths=[32,64]", "max_predictions=[5,9]"))
    assert "added words 41" in printed
    assert printed.count(" pieces a word, 0.000% unknown; after words were added, ") == 2
    folder = out_dir / "32"
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    assert tokenizer.convert_tokens_to_ids("zebra") == len(source)
    assert len(tokenizer) == len(source) + 41
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest["tokenizer"]["vocab_size"] == len(tokenizer)
    sentences = [
        line for path in (out_dir / "corpus" / "text").glob("*.txt") for line in path.read_text().split("\n") if line
    ]
    count = {"before": 0, "after": 0}
    for when, path in (("before", tmp_path / "given"), ("after", folder / "tokenizer")):
        if when == "before":
            write_tokenizer(given_vocabulary(str(tmp_path / "source"), True), path)
        count[when] = sum(map(len, auto_ids(path, sentences)))
    stage = next(stage for stage in manifest["stages"] if stage["stage"] == "token ids")
    for when, pieces in count.items():
        assert sum(stage["pieces"][when][split]["pieces"] for split in ("train", "heldout")) == pieces
    words = len(" ".join(sentences).replace(".", " .").split())
    assert sum(stage["pieces"]["after"][split]["words"] for split in ("train", "heldout")) == words
    shares = manifest["tokenizer"]["text"]["heldout"]
    assert 1 < shares["after"]["pieces_a_word"] < shares["before"]["pieces_a_word"]
    assert "no faults found" in run(verify, f"dir={folder}", "samples=1")
    page = Path(run(report, f"dir={folder}", "samples=1").strip()).read_text()
    assert f"{shares['before']['pieces_a_word']:.3f}" in page
    assert "reused" in run(
        prepare, *options(texts, out_dir, *wanted, "sequence_lengths=[32,64]", "max_predictions=[5,9]")
    )
    (tmp_path / "words.txt").write_text("Zebra\ngiraffe\n")
    again = run(prepare, *options(texts, out_dir, *wanted, "sequence_lengths=[32,64]", "max_predictions=[5,9]"))
    assert "vocab_add_hash was" in again


def test_words_need_a_tokenizer_of_word_pieces(tmp_path: Path, run: Run) -> None:
    texts = write_texts(tmp_path / "texts")
    assert "vocab_add_count is 5; allowed: null without vocab" in run(
        prepare, *options(texts, tmp_path / "out", "vocab_add_count=5")
    )
    MADE["byte-level BPE"](tmp_path / "source")
    message = run(prepare, *options(texts, tmp_path / "out", f"vocab={tmp_path / 'source'}", "vocab_add_count=5"))
    assert "vocab_add, vocab_add_count: they add whole words to a WordPiece vocabulary" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["other names, pad not at 0", "byte-level BPE"])
def test_other_special_tokens_from_text_to_batches(tmp_path: Path, run: Run, kind: str) -> None:
    """Shards, verify and dynamic masking take the special ids by their role."""
    MADE[kind](tmp_path / "source")
    out_dir = tmp_path / "out"
    more = [f"vocab={tmp_path / 'source'}", "whole_word_masking=true", "max_predictions=[9]"]
    printed = run(prepare, *options(write_texts(tmp_path / "texts"), out_dir, *more))
    assert "train on it" in printed, printed
    assert "no faults found" in run(verify, f"dir={out_dir}", "samples=1")
    tokenizer = AutoTokenizer.from_pretrained(out_dir / "tokenizer")
    assert tokenizer.pad_token_id != 0
    reader = ShardReader(shard_paths(out_dir, "train")[0])
    arrays = {name: values.astype(np.int64) for name, values in reader.read(0, reader.samples).items()}
    original = restore_ids(arrays)
    assert (original[arrays["input_mask"] == 0] == tokenizer.pad_token_id).all()
    assert (original[:, 0] == tokenizer.cls_token_id).all()
    masked = np.take_along_axis(arrays["input_ids"], arrays["masked_lm_positions"], 1)
    masked = masked[arrays["masked_lm_positions"] > 0]
    assert 0.7 < (masked == tokenizer.mask_token_id).mean() < 0.9
    config = DataConfig(
        "unused", 1.0, str(out_dir), str(out_dir / "tokenizer"), 32, "dynamic", None, None, None, "auto", 8, None, 1
    )
    padded = len(tokenizer) + 7  # a model with rows that have no token
    shards = open_split(config, "train", padded)
    assert shards is not None
    messages: list[str] = []
    check_vocabulary(config, [shards], messages.append)  # by tokenizer.json: not all have a vocab.txt
    assert not messages
    text_only(tmp_path / "other", [*SPECIAL, "a"], {})
    with pytest.raises(ConfigError, match="was made with another vocabulary"):
        check_vocabulary(replace(config, tokenizer=str(tmp_path / "other")), [shards], messages.append)
    mask = dynamic_masking(config, shards, seed=3)
    assert mask is not None
    stored = shards.read(0, shards.samples)
    anew = mask(stored, 1, np.arange(shards.samples))
    assert (restore_ids(anew) == restore_ids(stored)).all()
    assert (anew["input_ids"] == tokenizer.mask_token_id).sum() > 50
    assert int(anew["input_ids"].max()) < len(tokenizer)
    special = {tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id}
    assert not special & set(anew["masked_lm_ids"][anew["masked_lm_positions"] > 0].tolist())
    with pytest.raises(ConfigError, match=f"made with a vocabulary of {len(tokenizer)}"):
        open_split(config, "train", len(tokenizer) - 1)
    assert json.loads((out_dir / "manifest.json").read_text())["tokenizer"]["vocab_size"] == len(tokenizer)
