"""The page of data-report: its numbers against counts over the shards and the text, its texts, its escaping."""

import html
import json
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from transformers import BertTokenizerFast

from data_prep import prepare
from data_prep.engine.shard_statistics import Totals
from data_prep.report import corpus, shards
from data_prep.report import run as report
from data_prep.samples import examples
from data_prep.samples.tokenizer import load_vocabulary
from tests.bert_pretrain.test_html_page import check_page

EVIL = "</pre></table><script>alert(1)</script><img src=x onerror=alert(2)>"
GERMAN = "Die Stadt liegt am Fluss und die Leute gehen jeden Morgen auf den Markt, um Brot und Obst zu kaufen."
WORDS = ["the", "town", "lies", "near", "a", "river", "and", "many", "people", "walk", "to", "market", "every", "day"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
Tables = dict[str, list[list[str]]]


def english(rng: np.random.Generator, words: int) -> str:
    return " ".join(rng.choice(WORDS, words)).capitalize() + "."


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of English and German, with markup in the text, duplicates, and words that the vocabulary lacks."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    documents = ["\n".join(english(rng, rng.integers(8, 30)) for _ in range(rng.integers(3, 9))) for _ in range(40)]
    documents += [english(rng, 12) + f" \u00f8re is {EVIL} number {n} \u00f8re." for n in range(6)]
    base = english(rng, 120)
    documents += [base, base[:-1] + " indeed.", base.upper()]
    documents[0] += "\n| a | b | c |\nA Heading"
    (folder / "en.txt").write_text("\n\n".join(documents))
    (folder / "de.txt").write_text(
        "\n\n".join(f"{GERMAN}\nDas Jahr {n} war gut, und alle waren froh." for n in range(9))
    )
    letters = [chr(code) for code in range(0x21, 0x7F)]
    entries = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *WORDS[:4], *WORDS[5:], "\u00fc", "##\u00fc"]
    (folder / "vocab.txt").write_text("\n".join(entries) + "\n")
    sys_argv = ["prepare", "corpus=text", f"corpus.path={folder / 'en.txt'}", "+corpus@mix.german=text",
                f"mix.german.path={folder / 'de.txt'}", "mix.german.weight=2", "mix.german.language=de",
                "mix.german.licence=CC0", f"vocab={folder / 'vocab.txt'}", "sequence_lengths=[48]",
                "samples_per_shard=50", "heldout_fraction=0.2",
                "engine.workers=1", f"out_dir={folder / 'out'}"]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", sys_argv)
        prepare.main()
        patch.setattr(sys, "argv", ["data-report", f"dir={folder / 'out'}", "samples=2"])
        report.main()
    return folder / "out"


def page_of(out_dir: Path) -> str:
    return (out_dir / "report.html").read_text()


def tables(page: str) -> Tables:
    """The rows of every table, by its caption; the first row is the header."""
    found = {}
    for table in re.findall(r"<table.*?</table>", page, re.DOTALL):
        caption = html.unescape(re.findall(r"<caption><span>(.*?)</span>", table)[0])
        rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)]
        found[caption] = [[html.unescape(re.sub(r"<[^>]*>", "", cell)) for cell in row] for row in rows]
    return found


def table(out_dir: Path, beginning: str) -> dict[str, list[str]]:
    """One table: the first cell of each row, and the others."""
    (rows,) = [rows for caption, rows in tables(page_of(out_dir)).items() if caption.startswith(beginning)]
    return {row[0]: row[1:] for row in rows}


def read_all(out_dir: Path, split: str) -> dict[str, np.ndarray]:
    """All arrays of a split, with the original ids in ``ids``."""
    found: dict[str, list[np.ndarray]] = {}
    for path in sorted(out_dir.glob(f"{split}_*.hdf5")):
        with h5py.File(path) as file:
            for name in ("input_ids", "input_mask", "masked_lm_positions", "masked_lm_ids"):
                found.setdefault(name, []).append(np.asarray(file[name][:]).astype(np.int64))
    arrays = {name: np.concatenate(values) for name, values in found.items()}
    arrays["ids"] = arrays["input_ids"].copy()
    for row, (places, ids) in enumerate(zip(arrays["masked_lm_positions"], arrays["masked_lm_ids"], strict=True)):
        arrays["ids"][row, places[places > 0]] = ids[places > 0]
    return arrays


def text_documents(out_dir: Path) -> list[list[str]]:
    """The sentences of the documents that were kept, in the order of the corpora."""
    dropped = set(np.load(out_dir / "corpus/repeats/repeated.npy").tolist())
    parts = sorted((out_dir / "corpus/text").glob("*.txt"))
    documents = [document.split("\n") for part in parts for document in part.read_text().split("\n\n")[:-1]]
    return [document for number, document in enumerate(documents) if number not in dropped]


def test_the_page_is_whole_and_nothing_of_the_text_is_markup(made: Path) -> None:
    found = check_page(page_of(made))
    assert "img" not in found.tags
    assert sum(EVIL in text for _, text in found.texts) >= 1
    assert "Content-Security-Policy" in page_of(made)


def test_counts_of_samples_are_those_of_the_shards(made: Path) -> None:
    figures, lengths = table(made, "The shards"), table(made, "Lengths")
    for column, split in enumerate(("train", "heldout")):
        arrays = read_all(made, split)
        tokens = arrays["input_mask"].sum(1)
        unknown = np.count_nonzero((arrays["ids"] == 1) & (arrays["input_mask"] > 0)) / tokens.sum()
        assert figures["samples"][column] == f"{len(tokens):,}"
        assert figures["tokens, without padding"][column] == f"{tokens.sum():,}"
        assert figures["unknown tokens"][column] == f"{unknown:.2%}"
        row = lengths[f"tokens of {split} samples"]
        median, longest = sorted(tokens)[(len(tokens) - 1) // 2], tokens.max()
        assert (row[0], row[1], row[3], row[5]) == (
            f"{len(tokens)}",
            f"{tokens.mean():,.1f}",
            f"{median}",
            f"{longest}",
        )
    arrays = np.concatenate([read_all(made, split)["ids"].ravel() for split in ("train", "heldout")])
    tokens = load_vocabulary(made / "tokenizer").tokens
    counts = Counter(tokens[token] for token in arrays[arrays != 0].tolist())
    shown = table(made, "The most frequent tokens")
    assert {token: int(row[0].replace(",", "")) for token, row in shown.items() if token != "token"} == {
        token: counts[token] for token in shown if token != "token"
    }
    assert shown[counts.most_common(1)[0][0]]


def test_counts_of_the_text_are_those_of_an_independent_tokenizer(made: Path) -> None:
    documents = text_documents(made)
    tokenizer = BertTokenizerFast(str(made / "tokenizer/vocab.txt"), do_lower_case=True)
    sizes = [[len(tokenizer.tokenize(sentence)) for sentence in document] for document in documents]
    lengths = table(made, "Lengths")
    assert lengths["sentences of documents"][0] == f"{len(documents)}"
    assert lengths["tokens of documents"][1] == f"{np.mean([sum(size) for size in sizes]):,.1f}"
    of_sentences = [size for document in sizes for size in document]
    assert lengths["tokens of sentences"][0] == f"{len(of_sentences)}"
    low, high = lengths["tokens of sentences"][5].split("\u2013")
    assert int(low) <= max(of_sentences) <= int(high)
    low, high = lengths["tokens of documents"][3].split("\u2013")
    assert int(low) <= np.median([sum(size) for size in sizes]) <= int(high)
    words = Counter(re.findall(r"\w*\u00f8\w*", " ".join(" ".join(document) for document in documents)))
    assert {word: int(row[0]) for word, row in table(made, "The 1 commonest").items() if word != "word"} == words
    assert table(made, "The 1 commonest")["\u00f8re"][1] == "100.00%"


def test_stages_drops_and_sources(made: Path) -> None:
    stages, sources = table(made, "The stages"), table(made, "Where the text")
    kept = len(text_documents(made))
    assert stages["text"][0] == "58 documents"
    assert stages["repeats"][:3] == ["58 documents", "1 exact duplicates, 1 near duplicates", f"{kept} documents"]
    assert kept == 56
    assert stages["token ids"][2].startswith(f"{kept} documents, ")
    counts = [sum(len(read_all(made, split)["ids"]) for split in splits) for splits in (("train",), ("heldout",))]
    assert stages["samples"][2] == f"length 48: {counts[0]:,} train, {counts[1]:,} heldout samples"
    assert table(made, "Paragraphs, sentences")["table or rule"][0] == "1"
    assert '<pre dir="auto">A Heading</pre>' in page_of(made)
    german = next(row for row in sources.values() if row[0] == "german")
    assert (german[2], german[3], german[4], german[7]) == ("CC0", "de", "9", "2")


def test_the_cluster_shows_the_texts_and_where_they_differ(made: Path) -> None:
    (rows,) = [rows for caption, rows in tables(page_of(made)).items() if caption.startswith("Duplicate documents")]
    assert ["duplicate clusters", "1"] in rows
    page = html.unescape(page_of(made))
    assert "3 documents, 1 of them near duplicates: " in page
    documents = (made.parent / "en.txt").read_text().split("\n\n")
    base = documents[documents.index(next(text for text in documents if text.endswith(" indeed."))) - 1]
    near = base[:-1] + " indeed."
    place = len(base) - 1
    assert f"differs from character {place:,} on" in page
    assert f'<pre dir="auto">{near[place - 40 :]}</pre>' in page
    assert f'<pre dir="auto">{base.upper()[:240]}' in page


def test_languages_by_corpus(made: Path) -> None:
    shown = table(made, "Languages (ISO 639-1")
    assert shown["language"] == ["corpus", "german"]
    assert shown["de"] == ["0.00%", "100.00%"]
    assert float(shown["en"][0].rstrip("%")) > 90
    assert corpus.script_counts(["ab \u0434\u4e2d\uff41 12", "\u4e2d"]) == {"Latin": 3, "Cyrillic": 1, "Han": 2}


def test_many_unknown_sentences_are_looked_up_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "_SENTENCES_A_BATCH", 10)
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, "a", "b"]) + "\n")
    vocabulary = load_vocabulary(tmp_path / "vocab.txt")
    sentences = [f"a x{number} b" if number % 2 else "a b" for number in range(50)]
    ids = np.array([token for number in range(50) for token in ((5, 1, 6) if number % 2 else (5, 6))])
    lengths = np.array([3 if number % 2 else 2 for number in range(50)])
    text = "".join(f"{sentence}\n" for sentence in sentences).encode()
    found = examples.unknown_words(vocabulary, text, ids, lengths)
    assert found == {f"x{number}": 1 for number in range(1, 50, 6)}  # every third of 25


def test_quantiles_and_names_of_bins() -> None:
    assert shards._names(4, by_bits=True) == ["0", "1", "2\u20133", "4\u20137"]
    assert shards._names(2, by_bits=False) == ["0\u20137", "8\u201315"]
    assert [shards._quantile([0, 1, 1, 2], share) for share in (0.1, 0.5, 0.9)] == [1, 2, 3]


def test_shards_of_other_programs_and_of_earlier_versions(made: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    shutil.copytree(made, tmp_path / "legacy", ignore=shutil.ignore_patterns("manifest.json", "corpus"))
    monkeypatch.setattr(sys, "argv", ["data-report", f"dir={tmp_path / 'legacy'}"])
    report.main()
    page = page_of(tmp_path / "legacy")
    check_page(page)
    assert "There is no manifest.json" in page
    manifest = json.loads((made / "manifest.json").read_text())
    new = (
        "documents_read",
        "notes",
        "warnings",
        "examples",
        "tokens_a_document",
        "largest_clusters",
        "duplicate_clusters",
    )
    manifest["stages"] = [{key: row[key] for key in row if key not in new} for row in manifest["stages"]]
    del manifest["versions"]
    totals = {"train": Totals(samples=1, lengths=np.array([0, 1]), masks=np.array([1]), positions=np.array([0, 1]))}
    check_page(report.render("old", manifest, totals, None, "2026"))


def test_a_manifest_of_another_program(made: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    shutil.copytree(made, tmp_path / "set", ignore=shutil.ignore_patterns("corpus"))
    path = tmp_path / "set" / "manifest.json"
    manifest = json.loads(path.read_text())
    monkeypatch.setattr(sys, "argv", ["data-report", f"dir={path.parent}"])
    for stages in (3, [{"stage": "text"}], ["text"]):
        path.write_text(json.dumps({**manifest, "stages": stages}))
        with pytest.raises(SystemExit, match="2"):
            report.main()
        assert "manifest.json is not as bert-pretrain prepare writes it (" in capsys.readouterr().err


def test_a_directory_without_shards(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["data-report", f"dir={tmp_path}"])
    with pytest.raises(SystemExit) as end:
        report.main()
    assert end.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
