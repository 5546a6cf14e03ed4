"""The tokenizer is the one that transformers loads, to the id; and training it gives the same words every time."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from bert_pretrain.errors import ConfigError
from bert_pretrain.masking import SPECIAL_TOKENS
from data_prep.tokenised import ArrayWriter, is_heldout, open_tokenised, tokenise
from data_prep.tokenizer import Vocabulary, encode_batch, load_vocabulary, train_vocabulary, write_tokenizer

ROOT = Path(__file__).resolve().parents[2]
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
    return train_vocabulary(lambda: texts, size, lowercase)


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
    code = "from tests.data_prep.test_tokenizer import trained; print(trained().tokenizer_hash)"
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


def test_what_is_written_is_read(tmp_path: Path) -> None:
    vocabulary = trained(lowercase=False)
    write_tokenizer(vocabulary, tmp_path)
    for path in (tmp_path, tmp_path / "vocab.txt"):
        loaded = load_vocabulary(path, lowercase=False)
        assert loaded.tokens == vocabulary.tokens
        assert (loaded.vocab_hash, loaded.tokenizer_hash) == (vocabulary.vocab_hash, vocabulary.tokenizer_hash)
        assert loaded.lowercase is False
    (tmp_path / "tokenizer.json").unlink()
    assert load_vocabulary(tmp_path, lowercase=False).tokens == vocabulary.tokens


def test_special_tokens_in_the_text_are_text() -> None:
    vocabulary = trained()
    ids, _ = encode_batch(vocabulary, ["a [MASK] b [SEP] [PAD]"])
    special = {vocabulary.tokens.index(token) for token in ("[MASK]", "[SEP]", "[PAD]", "[CLS]")}
    assert not special & set(ids.tolist())


def test_the_number_of_a_batch_does_not_matter() -> None:
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
        ("vocab.txt", b"a\nb\na\n", "'a' stands there twice"),
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


def test_other_tokenizers_are_refused(tmp_path: Path) -> None:
    Tokenizer(models.BPE({"a": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="is a BPE tokenizer; BERT takes WordPiece"):
        load_vocabulary(tmp_path, True)


def test_no_room_for_words() -> None:
    with pytest.raises(ConfigError, match="do not leave room"):
        train_vocabulary(lambda: ["".join(chr(0x4E00 + number) for number in range(500))], 200, True)


def test_tokenised_arrays(tmp_path: Path) -> None:
    vocabulary = trained()
    documents = [["One two.", "\x01", "Three."], ["\x02"], ["Four four four."], ["Five."]]
    counts = tokenise(documents, vocabulary, tmp_path, seed=1, heldout_fraction=0.5)
    corpus = open_tokenised(tmp_path)
    assert (counts.sentences_dropped_without_tokens, counts.documents_dropped_without_tokens) == (2, 1)
    assert corpus.documents.tolist() == [0, 2, 3, 4]
    for number, sentence in enumerate(["One two.", "Three.", "Four four four.", "Five."]):
        part = corpus.ids[corpus.sentences[number] : corpus.sentences[number + 1]]
        assert part.tolist() == encode_batch(vocabulary, [sentence])[0].tolist()
    wanted = [is_heldout(document, 1, 0.5) for document in documents if document != ["\x02"]]
    assert corpus.heldout.tolist() == wanted


def test_heldout_is_a_share_and_depends_on_content_and_seed() -> None:
    documents = [[f"Document {number}."] for number in range(4000)]
    for fraction in (0.0, 0.05, 0.5):
        share = np.mean([is_heldout(document, 3, fraction) for document in documents])
        assert abs(share - fraction) < 0.04
    first = [is_heldout(document, 3, 0.5) for document in documents]
    assert first == [is_heldout(list(document), 3, 0.5) for document in documents]
    assert first != [is_heldout(document, 4, 0.5) for document in documents]


def test_array_writer(tmp_path: Path) -> None:
    with ArrayWriter(tmp_path / "a.npy", np.dtype(np.int64)) as writer:
        for part in range(100):
            writer.append(np.arange(part))
    expected = np.concatenate([np.arange(part) for part in range(100)])
    assert (np.load(tmp_path / "a.npy", mmap_mode="r") == expected).all()
