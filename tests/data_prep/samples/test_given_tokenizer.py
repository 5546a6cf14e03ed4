"""``prepare vocab=``: the ids of AutoTokenizer, whatever the tokenizer, and its files unchanged."""

import functools
import json
import lzma
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

from bert_pretrain.data.tokenizer_files import ROLES, read_tokenizer
from bert_pretrain.errors import ConfigError
from data_prep.samples.given_tokenizer import given_vocabulary
from data_prep.samples.tokenizer import Letters, load_vocabulary, train_vocabulary, write_tokenizer
from data_prep.samples.words import WordEncoder
from tests.conftest import ROOT

SHARED = ROOT.parent / "shared" / "data" / "wiki" / "wikipedia_articles.txt.xz"
LINES = [
    "The quick brown fox jumps over the lazy dog, doesn't it?",
    "Ünïcödé façade naïve ÅNGSTRÖM Straße İstanbul ΣΑΣ",
    "数学 and ひらがな and 한국어 中文字abc",
    "  spaces\tand\u00a0others \u200b zero ",
    "New York new york NEW  YORK, New-York <url> <URL> x<url>y",
    "covid covidien sarscovid Sars-CoV-2 sars - cov - 2",
    "x" * 120 + " after",
    "\U0001f600 emoji \ufffd replacement \u0301 accent e\u0301",
    "don't-stop... (1,234.56) [brackets] #tag @you e=mc^2 €5",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@functools.cache
def words(lowercase: bool, accents: bool = False) -> list[str]:
    text = [line.replace("é", "e\u0301") if not accents else line for line in LINES]
    return train_vocabulary(lambda: [*text, *LINES] * 3, 260, Letters(lowercase)).tokens[5:]


def bert(tokens: list[str], special: list[str] = SPECIAL, **flags: Any) -> Tokenizer:
    _, unknown, cls, sep, _ = special
    ids = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=unknown, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(**flags)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing((sep, ids[sep]), (cls, ids[cls]))
    tokenizer.add_special_tokens(special)
    return tokenizer


def fast(folder: Path, tokenizer: Tokenizer, special: list[str] = SPECIAL, **more: Any) -> None:
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), special, strict=True))
    roles = {f"{role}_token": name for role, name in names.items()}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles, **more).save_pretrained(folder)


def text_only(folder: Path, tokens: list[str], config: dict[str, Any], **files: Any) -> None:
    folder.mkdir()
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    for name, content in {"tokenizer_config": config, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def transformers_saved(folder: Path, tokens: list[str], added: list[Any] | None = None, **flags: Any) -> None:
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}, **flags)
    tokenizer.add_tokens(added or [])
    tokenizer.save_pretrained(folder)


def bare_json(folder: Path) -> None:
    folder.mkdir()
    bert(SPECIAL + words(True, True), strip_accents=False, handle_chinese_chars=False).save(
        str(folder / "tokenizer.json")
    )


def padded(folder: Path) -> None:
    transformers_saved(folder, SPECIAL + words(True))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))


def byte_level(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(LINES * 3, trainer)
    fast(folder, tokenizer, ["<pad>", "<unk>", "<s>", "</s>", "<mask>"])


def across_words(folder: Path) -> None:
    tokenizer = bert(SPECIAL + words(True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("new york", "ny"), normalizers.Lowercase()])
    fast(folder, tokenizer)


def byte_level_as_roberta(folder: Path) -> None:
    """A word's piece differs with the space before it, as in RoBERTa and GPT-2."""
    byte_level(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))


def french(folder: Path) -> None:
    special = ["[VIDE]", "[INCONNU]", "[DEBUT]", "[FIN]", "[MASQUE]"]
    tokens = words(False)
    fast(folder, bert([*tokens[:20], *special, *tokens[20:]], special, lowercase=False), special)


def added(folder: Path) -> None:
    extra = ["New York", AddedToken("covid", single_word=True), AddedToken("<url>", special=True, normalized=False)]
    transformers_saved(folder, SPECIAL + words(True), extra)


MADE: dict[str, Callable[[Path], None]] = {
    "uncased": lambda folder: transformers_saved(folder, SPECIAL + words(True)),
    "cased": lambda folder: transformers_saved(folder, SPECIAL + words(False), do_lower_case=False),
    "accents kept": lambda folder: transformers_saved(folder, SPECIAL + words(True, True), strip_accents=False),
    "Chinese whole": lambda folder: transformers_saved(folder, SPECIAL + words(True), tokenize_chinese_chars=False),
    "added tokens": added,
    "other names, pad not at 0": french,
    "bare tokenizer.json": bare_json,
    "vocab.txt, cased, accents": lambda folder: text_only(
        folder, SPECIAL + words(False, True), {"do_lower_case": False, "strip_accents": False}
    ),
    "vocab.txt, special_tokens_map, added_tokens": lambda folder: text_only(
        folder,
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<mask>", *words(True)],
        {"do_lower_case": True, "tokenize_chinese_chars": False, "tokenizer_class": "BertTokenizer"},
        special_tokens_map={"mask_token": "<mask>"},
        added_tokens={"new york": 5 + len(words(True))},
    ),
    "padding and truncation": padded,
    "normaliser across words": across_words,
    "byte-level BPE": byte_level,
}


def auto_ids(folder: Path, lines: list[str]) -> list[list[int]]:
    return AutoTokenizer.from_pretrained(folder)(lines, add_special_tokens=False)["input_ids"]


def our_ids(encoder: WordEncoder, lines: list[str]) -> list[list[int]]:
    ids, lengths = encoder.encode("".join(f"{line}\n" for line in lines).encode())
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]


def real_lines() -> list[str]:
    if not SHARED.exists():
        return []
    with lzma.open(SHARED, "rt", encoding="utf-8") as file:
        return [line[:160].rstrip("\n") for line in file if line.strip()][:1000]


@pytest.mark.parametrize("kind", MADE)
def test_shards_folder_and_export_have_the_ids_of_transformers(tmp_path: Path, kind: str) -> None:
    source, ours, export = tmp_path / "source", tmp_path / "tokenizer", tmp_path / "export"
    MADE[kind](source)
    vocabulary = given_vocabulary(str(source), True)
    write_tokenizer(vocabulary, ours)
    shutil.copytree(ours, export)
    (export / "config.json").write_text('{"model_type": "bert"}')  # as bert-pretrain export writes it
    lines = LINES + real_lines()
    if not (source / "tokenizer.json").exists():  # AutoTokenizer needs to know that a vocab.txt is a BERT's
        (source / "config.json").write_text('{"model_type": "bert"}')
    expected = auto_ids(source, lines)
    assert max(map(max, filter(None, expected))) < len(vocabulary.tokens)
    raw = Tokenizer.from_file(str(ours / "tokenizer.json"))
    assert [encoding.ids for encoding in raw.encode_batch(lines, add_special_tokens=False)] == expected
    assert our_ids(WordEncoder(vocabulary), lines) == expected
    assert our_ids(WordEncoder(load_vocabulary(ours)), lines) == expected  # as the workers read it
    assert auto_ids(ours, lines) == auto_ids(export, lines) == expected
    loaded, table = AutoTokenizer.from_pretrained(ours), read_tokenizer(ours)
    assert table.tokens == sorted(loaded.get_vocab(), key=loaded.get_vocab().__getitem__)
    assert table.roles == {role: getattr(loaded, f"{role}_token_id") for role in ROLES}
    if kind not in ("bare tokenizer.json", "padding and truncation") and (source / "tokenizer_config.json").exists():
        for path in source.iterdir():
            if path.name != "config.json" and not (path.name == "tokenizer_config.json" and "vocab.txt" in kind):
                assert (ours / path.name).read_bytes() == path.read_bytes(), path.name


def test_sentences_of_byte_level_bpe_keep_the_space_before_them(tmp_path: Path) -> None:
    byte_level_as_roberta(tmp_path)
    sentences = ["The cat sat on the mat.", "The dog ran to New York.", "今天天气很好。", "我们去公园。"]
    (expected,) = auto_ids(tmp_path, [f" {sentences[0]} {sentences[1]}{sentences[2]}{sentences[3]}"])
    found = our_ids(WordEncoder(given_vocabulary(str(tmp_path), True)), sentences)
    assert [number for ids in found for number in ids] == expected


def test_a_cased_vocabulary_is_not_lowercased(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in SPECIAL + words(False)))
    for name in (path, tmp_path):
        with pytest.raises(ConfigError, match="words with capitals, and lowercase is true; give lowercase=false"):
            given_vocabulary(str(name), True)
        assert not given_vocabulary(str(name), False).lowercase


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"added_tokens.json": {"zap": 10}},
            r"'zap' has id 10, but no token has id 7; ids must be 0 to 7",
        ),
        ({"vocab.txt": None}, "has neither"),
        ({"vocab.txt": "[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n"}, r"has no \[MASK\]"),
        ({"tokenizer_config.json": "{"}, r"tokenizer_config\.json cannot be read"),
        ({"tokenizer.json": "[]"}, "no JSON object"),
        ({"tokenizer.json": {"model": {"vocab": {"[MASK]": 4, "a": 4}}}}, "no token has id 0"),
        (
            {"tokenizer_config.json": {"tokenizer_class": "Nowhere", "auto_map": {"AutoTokenizer": ["x.Y", None]}}},
            "cannot",
        ),
    ],
)
def test_folders_that_cannot_be_used(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    text_only(tmp_path / "source", [*SPECIAL, "a", "b"], {"do_lower_case": True})
    for name, content in files.items():
        path = tmp_path / "source" / name
        if content is None:
            path.unlink()
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigError, match=message) as error:
        given_vocabulary(str(tmp_path / "source"), True)
    assert "\n" not in str(error.value)
    assert "/tmp/tmp" not in str(error.value)


def test_a_vocabulary_file_with_a_configuration_follows_it_and_one_without_follows_the_option(tmp_path: Path) -> None:
    tokens = [*SPECIAL, "Ab", "ab", *(f"word{number}" for number in range(100))]
    text_only(tmp_path / "stated", tokens, {"do_lower_case": False})
    (tmp_path / "bare").mkdir()
    shutil.copy(tmp_path / "stated" / "vocab.txt", tmp_path / "bare")
    for name, lowercase, expected in (("stated", True, 5), ("bare", True, 6), ("bare", False, 5)):
        vocabulary = given_vocabulary(str(tmp_path / name), lowercase)
        assert our_ids(WordEncoder(vocabulary), ["Ab"]) == [[expected]]
        write_tokenizer(vocabulary, tmp_path / f"{name} {lowercase}")
        assert auto_ids(tmp_path / f"{name} {lowercase}", ["Ab"]) == [[expected]]


def test_a_sentence_transformers_folder_and_a_checkpoint(tmp_path: Path) -> None:
    modules = [{"idx": 0, "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "modules.json").write_text(json.dumps(modules))
    text_only(tmp_path / "old" / "0_Transformer", [*SPECIAL, "a"], {"do_lower_case": True})
    (tmp_path / "step_00000001").mkdir()
    text_only(tmp_path / "step_00000001" / "model", [*SPECIAL, "b"], {"do_lower_case": True})
    assert given_vocabulary(str(tmp_path / "old"), True).tokens[-1] == "a"
    assert given_vocabulary(str(tmp_path / "step_00000001"), True).tokens[-1] == "b"


def test_a_path_that_does_not_exist_is_not_looked_for_on_the_hub() -> None:
    with pytest.raises(ConfigError, match="which does not exist"):
        given_vocabulary("/nowhere/vocab.txt", True)
