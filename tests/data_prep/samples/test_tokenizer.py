"""Tokenizers: the same ids as in transformers, reproducible training, and errors for unusable vocabularies."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from bert_pretrain.data.masking_rule import SPECIAL_TOKENS
from bert_pretrain.errors import ConfigError
from data_prep.samples import tokenizer, words
from data_prep.samples.tokenised import is_heldout
from data_prep.samples.tokenizer import (
    Letters,
    Vocabulary,
    encode_batch,
    load_vocabulary,
    train_vocabulary,
    write_tokenizer,
)
from data_prep.samples.words import WordEncoder
from tests.conftest import ROOT

SHARED_VOCAB = ROOT.parent / "shared" / "data" / "vocab"
TEXTS = [
    "The quick brown fox jumps over the lazy dog, doesn't it?",
    "Ünïcödé façade naïve ÅNGSTRÖM Straße",
    "数学 and ひらがな and 한국어",
    "  spaces\tand\u00a0others \u200b zero ",
    "don't-stop... (1,234.56) [brackets] #tag @you e=mc^2 €5",
    "x" * 150 + " after",
    "\U0001f600 emoji \ufffd replacement \u0301 accent",
    "",
    "unaffable antidisestablishmentarianism",
]


def trained(lowercase: bool = True, size: int = 400) -> Vocabulary:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyzÄé"), rng.integers(1, 8))) for _ in range(300)]
    texts = [" ".join(rng.choice(words, 12)).capitalize() + "." for _ in range(400)] + TEXTS
    return train_vocabulary(lambda: texts, size, Letters(lowercase))


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("source", ["trained", "standard"])
def test_transformers_gives_the_same_ids(tmp_path: Path, lowercase: bool, source: str) -> None:
    transformers = pytest.importorskip("transformers")
    if source == "standard":
        path = SHARED_VOCAB / f"bert-base-{'un' if lowercase else ''}cased-vocab.txt"
        if not path.exists():
            pytest.skip("the standard vocabularies are not beside the repository (../shared/data/vocab)")
        vocabulary = load_vocabulary(path, lowercase)
    else:
        vocabulary = trained(lowercase)
    write_tokenizer(vocabulary, tmp_path / "tokenizer")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert type(loaded).__name__ in ("BertTokenizer", "BertTokenizerFast")
    assert len(loaded) == len(vocabulary.tokens)
    assert loaded.convert_ids_to_tokens(range(len(loaded))) == vocabulary.tokens
    specials = (loaded.pad_token, loaded.unk_token, loaded.cls_token, loaded.sep_token, loaded.mask_token)
    assert specials == SPECIAL_TOKENS
    ids, lengths = encode_batch(vocabulary, TEXTS)
    parts = np.split(ids, np.cumsum(lengths)[:-1])
    for text, part in zip(TEXTS, parts, strict=True):
        assert loaded(text, add_special_tokens=False)["input_ids"] == part.tolist(), text
    pair = loaded("a b", "c")
    kinds = pair["token_type_ids"]
    assert pair["input_ids"][0] == loaded.cls_token_id
    assert pair["input_ids"].count(loaded.sep_token_id) == 2
    assert kinds == sorted(kinds)
    assert (loaded.do_lower_case, loaded("A B")["input_ids"] == loaded("a b")["input_ids"]) == (lowercase, lowercase)
    plain = transformers.BertTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert plain(TEXTS)["input_ids"] == loaded(TEXTS)["input_ids"]


def test_training_gives_the_same_words_in_every_process() -> None:
    code = "from tests.data_prep.samples.test_tokenizer import trained; print(trained().tokenizer_hash)"
    runs = [subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True) for _ in range(2)]
    assert runs[0].returncode == 0, runs[0].stderr
    assert {run.stdout.strip() for run in runs} == {trained().tokenizer_hash}


def test_a_trained_vocabulary() -> None:
    vocabulary = trained()
    assert vocabulary.tokens[:5] == list(SPECIAL_TOKENS)
    assert len(vocabulary.tokens) == len(set(vocabulary.tokens)) == 400
    assert all(token == token.lower() for token in vocabulary.tokens[5:])
    assert any(token != token.lower() for token in trained(lowercase=False).tokens[5:])
    assert vocabulary.id_dtype == np.uint16


def test_a_written_tokenizer_is_read_again(tmp_path: Path) -> None:
    vocabulary = trained(lowercase=False)
    write_tokenizer(vocabulary, tmp_path)
    for path in (tmp_path, tmp_path / "vocab.txt"):
        loaded = load_vocabulary(path, lowercase=False)
        assert loaded.tokens == vocabulary.tokens
        assert (loaded.vocab_hash, loaded.tokenizer_hash) == (vocabulary.vocab_hash, vocabulary.tokenizer_hash)
        assert loaded.lowercase is False
    (tmp_path / "tokenizer.json").unlink()
    assert load_vocabulary(tmp_path, lowercase=False).tokens == vocabulary.tokens


def test_names_of_special_tokens_in_the_text_are_plain_text() -> None:
    vocabulary = trained()
    ids, _ = encode_batch(vocabulary, ["a [MASK] b [SEP] [PAD]"])
    special = {vocabulary.tokens.index(token) for token in ("[MASK]", "[SEP]", "[PAD]", "[CLS]")}
    assert not special & set(ids.tolist())


def test_the_batch_size_does_not_matter() -> None:
    vocabulary = trained()
    whole, lengths = encode_batch(vocabulary, TEXTS)
    single = [encode_batch(vocabulary, [text])[0] for text in TEXTS]
    assert (np.concatenate(single) == whole).all()
    assert [len(part) for part in single] == lengths.tolist()


@pytest.mark.parametrize("missing", SPECIAL_TOKENS)
def test_a_vocabulary_without_a_special_token(tmp_path: Path, missing: str) -> None:
    tokens = [token for token in SPECIAL_TOKENS if token != missing] + ["a", "b"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens))
    with pytest.raises(ConfigError, match=rf"vocab\.txt has no \{missing}"):
        load_vocabulary(tmp_path / "vocab.txt", True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.txt", b"a\nb\na\n", "'a' occurs twice"),
        ("vocab.txt", b"", r"has no \[PAD\]"),
        ("vocab.txt", b"\xff\xfea", "not UTF-8 at byte 0"),
        ("tokenizer.json", b"{", "cannot be read"),
        ("other.bin", b"", "it takes a vocab.txt"),
    ],
)
def test_bad_vocabularies(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_vocabulary(tmp_path, True)


def test_a_tokenizer_without_the_special_tokens_is_refused(tmp_path: Path) -> None:
    Tokenizer(models.BPE({"a": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match=r"has no \[PAD\], .* BERT needs"):
        load_vocabulary(tmp_path, True)


def test_no_room_for_words() -> None:
    with pytest.raises(ConfigError, match="letters and special tokens alone"):
        train_vocabulary(lambda: ["".join(chr(0x4E00 + number) for number in range(500))], 200, Letters(True))


def test_heldout_is_a_share_and_depends_on_content_and_seed() -> None:
    documents = [f"Document {number}.".encode() for number in range(4000)]
    for fraction in (0.0, 0.05, 0.5):
        share = np.mean([is_heldout(document, 3, fraction) for document in documents])
        assert abs(share - fraction) < 0.04
    first = [is_heldout(document, 3, 0.5) for document in documents]
    assert first == [is_heldout(bytes(document), 3, 0.5) for document in documents]
    assert first != [is_heldout(document, 4, 0.5) for document in documents]


def lines(sentences: list[str]) -> bytes:
    return "".join(f"{sentence}\n" for sentence in sentences).encode()


LETTERS = (
    "abcdeABCDE0189 " * 4
    + ".,'-[]#(){}*_~^`|<>=$"
    + "\t\r\x00\x07\x1c\x1f\x7f\x85\u00a0\u00ad\u1680\u2003\u2028\u200b\u200d\u3000\ufeff\ufffd"
    + "äÄéßıİıſΣσςΆάйЙ\u0301\u0308\u0345\u0323\u1e9b\ufb01Ⅷ①½"
    + "中文字\u3400\U00020000ひらカ한국ไทยहिन्दीעברית"
    + "\U0001f600\U0001f468\u200d\U0001f469¿¡«»„“—…‰€"
)


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("source", ["trained", "standard"])
def test_our_encoder_gives_the_ids_of_the_library(source: str, lowercase: bool) -> None:
    """Random strings of unusual characters, compared with the library on whole sentences."""
    if source == "standard":
        path = SHARED_VOCAB / f"bert-base-{'un' if lowercase else ''}cased-vocab.txt"
        if not path.exists():
            pytest.skip("the standard vocabularies are not beside the repository (../shared/data/vocab)")
        vocabulary = load_vocabulary(path, lowercase)
    else:
        vocabulary = trained(lowercase)
    encoder = WordEncoder(vocabulary)
    vocabulary.tokenizer.encode_special_tokens = True  # "[SEP]" in a text is text
    rng = random.Random(5)
    specials = [" [MASK] ", "[SEP]", " [UNK]a", "x" * 99, "x" * 101, "##a", " ## "]
    for _ in range(40):
        sentences = [
            "".join(
                rng.choice(LETTERS) if rng.random() < 0.98 else rng.choice(specials) for _ in range(rng.randint(0, 60))
            )
            for _ in range(100)
        ]
        sentences += [
            chr(rng.choice([rng.randint(11, 0xD7FF), rng.randint(0xE000, 0x10FFFF)])) + "a b" for _ in range(200)
        ]
        expected = vocabulary.tokenizer.encode_batch(sentences, add_special_tokens=False)
        ids, lengths = encoder.encode(lines(sentences))
        parts = np.split(ids, np.cumsum(lengths)[:-1])
        for sentence, part, encoding in zip(sentences, parts, expected, strict=True):
            assert part.tolist() == encoding.ids, repr(sentence)


def test_the_word_cache_is_bounded_and_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = trained()
    monkeypatch.setattr(words, "_MOST_ENTRIES", 50)
    encoder = WordEncoder(vocabulary)
    for part in range(20):
        sentences = [f"wörd{part} öther{number} the." for number in range(30)]
        ids, lengths = encoder.encode(lines(sentences))
        wanted, wanted_lengths = encode_batch(vocabulary, sentences)
        assert (ids == wanted).all()
        assert (lengths == wanted_lengths).all()
        assert len(encoder._numbers) < 150


@pytest.mark.parametrize("change", ["pre-tokenizer", "normalizer", "added token"])
def test_the_library_encodes_for_other_tokenizers(tmp_path: Path, change: str) -> None:
    """A tokenizer that is not BERT's, or has added tokens, encodes whole sentences."""
    vocabulary = trained()
    tokenizer = vocabulary.tokenizer
    if change == "pre-tokenizer":
        tokenizer.pre_tokenizer = pre_tokenizers.Split("o w", "isolated")
    elif change == "normalizer":
        tokenizer.normalizer = normalizers.Replace("a b", "c")
    else:
        tokenizer.add_tokens(["a b"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_vocabulary(tmp_path, True)
    texts = ["no word of a b", "a b a b", "a", "two words"]
    ids, _ = WordEncoder(loaded).encode(lines(texts))
    expected = [token for text in texts for token in loaded.tokenizer.encode(text, add_special_tokens=False).ids]
    assert ids.tolist() == expected


def test_the_alphabet_covers_the_share_of_the_characters_that_is_asked_for() -> None:
    most = 1500
    letters = [chr(0x4E00 + number) for number in range(most)]  # Chinese characters: letter n occurs 1500 - n times
    texts = ["".join(letters[: most - number]) for number in range(most)]
    total = most * (most + 1) // 2
    for coverage in (0.95, 0.9995, 1.0):
        vocabulary = train_vocabulary(lambda: texts, 2000, Letters(True, None, coverage))
        kept = len(vocabulary.tokens) - len(SPECIAL_TOKENS)
        missing = most - kept  # the rarest, which occur 1, 2, 3 ... times
        assert missing * (missing + 1) // 2 <= (1 - coverage) * total < (missing + 1) * (missing + 2) // 2
        assert set(letters[:kept]) <= set(vocabulary.tokens)
    assert len(train_vocabulary(lambda: texts, 2000, Letters(True, None, 0.5)).tokens) == 1000 + len(SPECIAL_TOKENS)


@pytest.mark.parametrize("remembered", [50, 10**6])
@pytest.mark.parametrize("lowercase", [True, False])
def test_the_letters_are_those_of_the_whole_text(
    monkeypatch: pytest.MonkeyPatch, lowercase: bool, remembered: int
) -> None:
    """Also where letters begin words only after punctuation, controls, wide spaces, marks or Chinese characters."""
    rng = random.Random(1)
    letters = [*"aebΣßÅıx ", " ", "\u0301", "-", ",", "\x1c", "\u00a0", "\u3000", "\u200d", "中", "あ", "\ufffd", "\t"]
    texts = ["".join(rng.choices(letters, k=rng.randint(0, 12))) for _ in range(300)]
    for text in (texts, texts[:20], texts[20:25]):
        with monkeypatch.context() as patched:
            patched.setattr(tokenizer, "_words_once", lambda sentences: sentences)
            whole = train_vocabulary(lambda: text, 400, Letters(lowercase))  # noqa: B023
        monkeypatch.setattr(tokenizer, "_REMEMBERED", remembered)
        assert train_vocabulary(lambda: text, 400, Letters(lowercase)).tokens == whole.tokens  # noqa: B023


def test_the_letters_of_repeated_words_are_looked_for_once() -> None:
    text = ["a sentence of some words"] * 1000
    assert sum(map(len, tokenizer._words_once(text))) == len(text[0])


SCRIPTS = {
    "Korean": "한국어 문장을 읽습니다",
    "Russian": "мой чай и твой ёж",
    "Hindi": "हिन्दी में लिखा हुआ",
    "Greek": "καλημέρα κόσμε",
    "Arabic": "اللُّغَةُ العَرَبِيَّةُ",
}


@pytest.mark.parametrize("language", SCRIPTS)
def test_marks_of_other_scripts_than_latin_survive(tmp_path: Path, language: str) -> None:
    transformers = pytest.importorskip("transformers")
    text = SCRIPTS[language]
    vocabulary = train_vocabulary(lambda: [text] * 5, 200, Letters(True))
    assert not vocabulary.strips_accents
    assert set(text.split()) <= set(vocabulary.tokens)
    write_tokenizer(vocabulary, tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = loaded(text, add_special_tokens=False)["input_ids"]
    assert (
        ids
        == encode_batch(vocabulary, [text])[0].tolist()
        == WordEncoder(vocabulary).encode(f"{text}\n".encode())[0].tolist()
    )
    assert loaded.convert_ids_to_tokens(ids) == text.split()
    assert set(text.split()) - set(train_vocabulary(lambda: [text] * 5, 200, Letters(True, True)).tokens)


@pytest.mark.parametrize(("strip", "expected"), [(None, "cafe"), (True, "cafe"), (False, "café")])
def test_accents_of_latin_letters_are_stripped_unless_refused(
    tmp_path: Path, strip: bool | None, expected: str
) -> None:
    rules = Letters(True, strip)
    vocabulary = train_vocabulary(lambda: ["Café"] * 5, 200, rules)
    assert expected in vocabulary.tokens
    assert vocabulary.strips_accents == (expected == "cafe")
    write_tokenizer(vocabulary, tmp_path)
    for path in (tmp_path, tmp_path / "vocab.txt"):
        assert load_vocabulary(path, True, strip).strips_accents == vocabulary.strips_accents
    cased = train_vocabulary(lambda: ["Café"] * 5, 200, Letters(False, strip))
    assert ("Café" in cased.tokens) == (strip is not True)
