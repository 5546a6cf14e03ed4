"""The prepare command: what it writes, what it reuses, and its errors."""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from tokenizers import Tokenizer

from bert_pretrain.data.masking_rule import restore_ids
from bert_pretrain.data.shard_directory import read_manifest, shard_paths
from bert_pretrain.data.shards import SHARD_FIELDS, ShardReader
from data_prep import prepare, verify
from data_prep.samples.tokenised import is_heldout
from data_prep.samples.tokenizer import load_vocabulary
from tests.conftest import ROOT

SHARED = ROOT.parent / "shared" / "data"
_RNG = np.random.default_rng(1)
WORDS = ["".join(_RNG.choice(list("abdegiklmnorstu"), _RNG.integers(4, 9))) for _ in range(120)]

Run = Callable[..., str]


def write_texts(folder: Path, documents: int = 60, seed: int = 0) -> Path:
    """Two files of random documents, a paragraph a line."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for part in range(2):
        blocks = []
        for _ in range(documents // 2):
            sentences = [" ".join(rng.choice(WORDS, rng.integers(3, 15))).capitalize() + "." for _ in range(12)]
            blocks.append("\n".join(" ".join(sentences[start : start + 4]) for start in range(0, 12, 4)))
        (folder / f"{part}.txt").write_text("\n\n".join(blocks) + "\n")
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; returns its output, or "STATUS: last line of its error output"."""

    def call(module: object, *options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["command", *options])
        capsys.readouterr()
        try:
            module.main()  # type: ignore[attr-defined]
        except SystemExit as end:
            return f"{end.code}: {capsys.readouterr().err.strip().splitlines()[-1]}"
        return capsys.readouterr().out

    return call


def options(texts: Path, out_dir: Path, *more: str) -> list[str]:
    given = {option.split("=")[0] for option in more}
    base = [
        "corpus=text",
        f"corpus.path={texts}",
        f"out_dir={out_dir}",
        "vocab_size=150",
        "sequence_lengths=[32]",
        "samples_per_shard=40",
        "heldout_fraction=0.2",
        "engine.workers=1",  # a cluster takes seconds to start; test_data_engine.py compares one with this process
    ]
    return [option for option in base if option.split("=")[0] not in given] + list(more)


def content(out_dir: Path) -> dict[str, bytes]:
    """What was written, without the seconds of the stages."""
    files = {}
    for path in sorted(path for path in out_dir.rglob("*") if path.is_file()):
        text = path.read_bytes()
        if path.suffix != ".h5":  # token ids are not output
            files[str(path.relative_to(out_dir))] = re.sub(rb'"seconds": [\d.]+', b"", text)
    return files


def read_text_part(path: Path) -> list[list[str]]:
    """The documents of a text part, each a list of sentences."""
    return [document.split("\n") for document in path.read_text().split("\n\n")[:-1]]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Texts and what was made of them with ``options``, which no test changes."""
    folder = tmp_path_factory.mktemp("prepared")
    texts = write_texts(folder / "texts")
    prepare.main(options(texts, folder / "out"))
    return texts, folder / "out"


def test_from_text_to_shards(tmp_path: Path, run: Run) -> None:
    texts, out_dir = write_texts(tmp_path / "texts"), tmp_path / "out"
    printed = run(prepare, *options(texts, out_dir, "dupe_factor=3", "corpus.licence=CC0"))
    assert "[6] shards 32" in printed
    manifest = read_manifest(out_dir)
    assert manifest is not None
    vocabulary = load_vocabulary(out_dir / "tokenizer", True)
    documents = read_text_part(out_dir / "corpus" / "text" / "000000.txt")
    assert len(documents) == 60
    assert sum(map(len, documents)) == 720
    source_text = "".join((texts / f"{part}.txt").read_text() for part in range(2))
    assert "".join("".join(map("".join, documents)).split()) == "".join(source_text.split())

    targets = np.zeros(150)
    sizes = {"train": [], "heldout": []}  # type: dict[str, list[int]]
    for split in sizes:
        for path in shard_paths(out_dir, split):
            reader = ShardReader(path)
            reader.check_content(150)
            assert reader.header is not None
            assert (reader.header.split, reader.header.dupe_factor) == (split, 3 if split == "train" else 1)
            assert reader.header.vocab_hash == vocabulary.vocab_hash == manifest["tokenizer"]["vocab_hash"]
            assert reader.header.tokenizer_hash == manifest["tokenizer"]["tokenizer_hash"]
            assert (reader.sequence_length, reader.max_predictions) == (32, 5)
            arrays = reader.read(0, reader.samples)
            if split == "train":
                labels = arrays["masked_lm_ids"][arrays["masked_lm_positions"] > 0]
                targets += np.bincount(labels, minlength=150)
            check_against_corpus(arrays, documents, vocabulary.tokenizer, split)
            sizes[split].append(reader.samples)
    assert all(size == 40 for size in sizes["train"][:-1])
    shares = targets[targets > 0] / targets.sum()
    assert manifest["unigram_entropy"] == pytest.approx(-(shares * np.log(shares)).sum())
    assert {source["licence"] for source in manifest["sources"]} == {"CC0"}
    assert sum(source["documents"] for source in manifest["sources"]) == 60
    counts = manifest["stages"][-2]["32"]
    assert {split: counts[split]["samples"] for split in sizes} == {split: sum(sizes[split]) for split in sizes}
    assert "no faults found" in run(verify, f"dir={out_dir}", "samples=2")


def read_as_published(path: Path, most: int) -> list[list[np.ndarray]]:
    """As NVIDIA's published loader does: [input_ids, segment_ids, input_mask, labels, next_sentence_label] of each row
    as int64; labels are -1 except at the positions before the first 0."""
    names = ["input_ids", "input_mask", "segment_ids", "masked_lm_positions", "masked_lm_ids", "next_sentence_labels"]
    with h5py.File(path, "r") as file:
        inputs = [np.asarray(file[name][:]) for name in names]
    samples = []
    for index in range(len(inputs[0])):
        ids, mask, segments, positions, masked, label = (
            np.asarray(values[index]).astype(np.int64) for values in inputs
        )
        labels = np.full(ids.shape, -1, dtype=np.int64)
        padded = np.flatnonzero(positions == 0)
        count = int(padded[0]) if len(padded) else most
        labels[positions[:count]] = masked[:count]
        samples.append([ids, segments, mask, labels, label])
    return samples


def test_the_published_loader_reads_our_shards(prepared: tuple[Path, Path]) -> None:
    texts, out_dir = prepared
    tokenizer = load_vocabulary(out_dir / "tokenizer", True).tokenizer
    whole = " ".join("".join((texts / f"{part}.txt").read_text() for part in range(2)).lower().split())
    (path, *_) = shard_paths(out_dir, "train")
    for ids, segments, mask, labels, label in read_as_published(path, 5):
        assert 1 <= (labels >= 0).sum() <= 5
        assert label in (0, 1)
        original = np.where(labels >= 0, labels, ids)[mask == 1]
        segment = tokenizer.decode(original[segments[mask == 1] == 1][:-1].tolist())
        assert "".join(segment.split()).removeprefix("##") in "".join(whole.split())


def check_against_corpus(arrays: dict, documents: list[list[str]], tokenizer: Tokenizer, split: str) -> None:
    """Every segment is from a document of its split, and true next segments are from the same document."""
    encoded = [tokenizer.encode_batch(document, add_special_tokens=False) for document in documents]
    texts = [" ".join(str(token) for sentence in sentences for token in sentence.ids) for sentences in encoded]
    mine = {
        d
        for d, text in enumerate(documents)
        if is_heldout("\n".join(text).encode(), 12345, 0.2) == (split == "heldout")
    }
    original = restore_ids(arrays)
    for row in range(0, len(original), 7):
        length, b_tokens = int(arrays["input_mask"][row].sum()), int(arrays["segment_ids"][row].sum())
        a = " ".join(map(str, original[row, 1 : length - b_tokens - 1]))
        b = " ".join(map(str, original[row, length - b_tokens : length - 1]))
        in_a = {d for d, text in enumerate(texts) if f" {a} " in f" {text} "}
        in_b = {d for d, text in enumerate(texts) if f" {b} " in f" {text} "}
        assert in_a & mine
        assert in_b & mine
        assert arrays["next_sentence_labels"][row] == 1 or in_a & in_b & mine


def test_same_seed_same_bytes(tmp_path: Path, prepared: tuple[Path, Path], run: Run) -> None:
    texts, out_dir = prepared
    for name, more in (("two", "engine.workers=2"), ("other", "seed=2")):
        run(prepare, *options(texts, tmp_path / name, more))
    one, two, other = content(out_dir), content(tmp_path / "two"), content(tmp_path / "other")
    assert one == two
    assert one["train_00000.hdf5"] != other["train_00000.hdf5"]


def test_run_again(tmp_path: Path, run: Run) -> None:
    texts, out_dir = write_texts(tmp_path / "texts"), tmp_path / "out"
    run(prepare, *options(texts, out_dir))
    before = content(out_dir)
    assert "reused" in run(prepare, *options(texts, out_dir))
    message = run(prepare, *options(texts, out_dir, "seed=3", "short_seq_prob=0.2"))
    assert message.startswith("2: error: out_dir")
    assert "seed was 12345, now 3" in message
    assert "short_seq_prob was 0.1, now 0.2" in message
    (texts / "0.txt").write_text((texts / "0.txt").read_text() + "\n\nMore text here. And there.")
    assert "the corpus itself" in run(prepare, *options(texts, out_dir))
    assert content(out_dir) == before
    (out_dir / "train_00000.hdf5").unlink()
    write_texts(tmp_path / "texts")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["sequence_lengths=[8]"], "sequence_lengths is [8]; allowed: one or more different lengths, each 16 to 65535"),
        (["sequence_lengths=[70000]"], "sequence_lengths is [70000]"),
        (["max_predictions=[0]"], "max_predictions is [0]"),
        (["max_predictions=[33]"], "max_predictions is [33]"),
        (["masked_lm_prob=0"], "masked_lm_prob is 0"),
        (["masked_lm_prob=1.5"], "masked_lm_prob is 1.5"),
        (["short_seq_prob=-0.1"], "short_seq_prob is -0.1"),
        (["mask_share=1.1"], "mask_share is 1.1"),
        (["mask_share=0.95"], "random_share is 0.1; allowed: up to 1 together with mask_share (0.95)"),
        (["dupe_factor=0"], "dupe_factor is 0"),
        (["samples_per_shard=0"], "samples_per_shard is 0"),
        (["heldout_fraction=1"], "heldout_fraction is 1"),
        (["heldout_fraction=0.0001"], "leaves 60 documents for training and 0 held out"),
        (["heldout_fraction=0.9999"], "heldout_fraction is 0.9999, which leaves"),
        (["seed=-1"], "seed is -1"),
        (["engine.workers=0"], "engine.workers is 0"),
        (["engine.scheduler=here"], "engine.scheduler is 'here'"),
        (["engine.scheduler=tcp://127.0.0.1:9"], "where no scheduler answers"),
        (["engine.worker_memory_gb=0.1"], "engine.worker_memory_gb is 0.1"),
        (["sequence_lengths=[]"], "sequence_lengths is []"),
        (["sequence_lengths=[32,32]"], "sequence_lengths is [32, 32]"),
        (["max_predictions=[5,6]"], "max_predictions is [5, 6]"),
        (["sample_kind=triple"], "sample_kind is 'triple'"),
        (["piece_mb=0"], "piece_mb is 0"),
        (["corpus.weight=0"], "corpus.weight is 0"),
        (["duplicates.similarity=0.1"], "duplicates.similarity is 0.1"),
        (["corpus.cleaning.unicode=NFX"], "corpus.cleaning.unicode is 'NFX'"),
        (["vocab_size=20"], "vocab_size is 20"),
        (["vocab=none.txt"], "vocab is 'none.txt'"),
        (["corpus.path=none"], "corpus.path is 'none', where nothing was found"),
        (["corpus.lines=word"], "corpus.lines is 'word'"),
        (["+corpus.encoding=latin1"], "encoding"),
        (["corpus.language=english"], "corpus.language is 'english'; allowed: an ISO 639 code"),
        (
            ["corpus.language=xx", "corpus.cleaning.language_filter=true"],
            "corpus.language is 'xx', which corpus.cleaning",
        ),
    ],
)
def test_bad_options(tmp_path: Path, run: Run, more: list[str], message: str) -> None:
    texts = write_texts(tmp_path / "texts")
    printed = run(prepare, *options(texts, tmp_path / "out", *more))
    assert printed.startswith("2: error: ")
    assert message in printed
    assert not list((tmp_path).glob("out/*"))
    if "leaves" in message:  # said after out_dir was claimed: it is free again
        assert "unigram entropy" in run(prepare, *options(texts, tmp_path / "out"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no text: every document is empty"),
        (
            "A heading\n\nTwo words\n",
            r"holds no text: all was dropped \(fragment 2\); see corpus.cleaning.min_words \(",
        ),
        ("\n \n\t\n", "holds no text"),
        ("One document. With two sentences.\n", "one document only"),
        ("One document.\n\nTwo documents.\n\nThree documents.\n", "both need 2 or more"),
        ("\x01\n\n\x02\n\n\x03\n", "holds no text"),
    ],
)
def test_a_corpus_that_is_too_small(tmp_path: Path, run: Run, text: str, message: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    printed = run(prepare, *options(tmp_path / "a.txt", tmp_path / "out"))
    assert printed.startswith("2: error: ")
    assert re.search(message, printed)
    assert not list(tmp_path.glob("out/*"))


def test_single_segments_need_no_second_document(tmp_path: Path, run: Run) -> None:
    block = (write_texts(tmp_path / "texts") / "0.txt").read_text().split("\n\n")[0]
    (tmp_path / "a.txt").write_text(block)
    one = options(tmp_path / "a.txt", tmp_path / "out", "sample_kind=single", "vocab_size=128")
    printed = run(prepare, *one)
    assert re.search(
        r"^2: error: heldout_fraction is 0.2, .* both need 1 or more, because documents stay whole", printed
    )
    assert "unigram entropy" in run(prepare, *one, "heldout_fraction=0")


def test_a_heldout_fraction_that_works_is_named(tmp_path: Path, run: Run) -> None:
    texts = write_texts(tmp_path / "texts", documents=40)
    small = options(texts, tmp_path / "out", "heldout_fraction=0.001")
    printed = run(prepare, *small)
    better = re.search(r"give another heldout_fraction \(such as ([\d.]+), 0: no held-out shards\)", printed)
    assert better is not None
    assert "unigram entropy" in run(prepare, *small, f"heldout_fraction={better[1]}")


@pytest.mark.parametrize("what", ["file", "foreign shard", "foreign file", "below a file", "read-only"])
def test_out_dir_with_foreign_files(tmp_path: Path, run: Run, what: str) -> None:
    texts, out_dir = write_texts(tmp_path / "texts"), tmp_path / "out"
    foreign = {"file": out_dir, "foreign shard": out_dir / "train_00000.hdf5", "foreign file": out_dir / "notes.txt"}
    if what in foreign:
        foreign[what].parent.mkdir(exist_ok=True)
        foreign[what].write_text("mine")
    elif what == "below a file":
        (tmp_path / "out").write_text("mine")
        out_dir = tmp_path / "out" / "deep"
    else:
        out_dir = Path("/proc/none")
    printed = run(prepare, *options(texts, out_dir))
    assert printed.startswith("2: error: out_dir")
    if what in foreign:
        assert foreign[what].read_text() == "mine"
        assert [path for path in tmp_path.rglob("*") if path.name == "corpus"] == []


def test_no_heldout_and_whole_words(tmp_path: Path, run: Run) -> None:
    texts, out_dir = write_texts(tmp_path / "texts"), tmp_path / "out"
    run(prepare, *options(texts, out_dir, "heldout_fraction=0", "whole_word_masking=true", "max_predictions=[9]"))
    assert shard_paths(out_dir, "heldout") == []
    tokens = load_vocabulary(out_dir / "tokenizer", True).tokens
    split_words = 0
    for path in shard_paths(out_dir, "train"):
        reader = ShardReader(path)
        arrays = {name: values.astype(int) for name, values in reader.read(0, reader.samples).items()}
        original = restore_ids(arrays)
        for row, positions in zip(original, arrays["masked_lm_positions"], strict=True):
            chosen = set(positions[positions > 0].tolist())
            for position in chosen:
                following = tokens[row[position + 1]].startswith("##")
                split_words += following
                assert not following or position + 1 in chosen
    assert split_words > 50
    assert "heldout: no shards" in run(verify, f"dir={out_dir}")


def test_a_given_vocabulary(tmp_path: Path, prepared: tuple[Path, Path], run: Run) -> None:
    texts, out_dir = prepared
    vocab = out_dir / "tokenizer"
    for name, given in (("two", vocab), ("three", vocab / "vocab.txt")):
        run(prepare, *options(texts, tmp_path / name, f"vocab={given}"))
        for path in shard_paths(out_dir, "train"):
            assert (tmp_path / name / path.name).read_bytes() == path.read_bytes()


def test_wikipedia_articles(tmp_path: Path, run: Run) -> None:
    """Real text with the standard vocabulary."""
    import lzma

    source, vocab = SHARED / "wiki" / "wikipedia_articles.txt.xz", SHARED / "vocab" / "bert-base-uncased-vocab.txt"
    if not (source.exists() and vocab.exists()):
        pytest.skip("the articles and the vocabulary are not beside the repository (../shared/data)")
    (tmp_path / "wiki.txt").write_bytes(lzma.decompress(source.read_bytes()))
    out_dir = tmp_path / "out"
    more = ["sequence_lengths=[128]", f"vocab={vocab}", "samples_per_shard=4096"]
    run(prepare, *options(tmp_path / "wiki.txt", out_dir, *more))
    manifest = json.loads((out_dir / "manifest.json").read_text())
    stages = {stage["stage"]: stage for stage in manifest["stages"]}
    assert stages["text"]["documents"] == 96
    assert stages["token ids"]["unknown_tokens"] / stages["token ids"]["tokens"] < 0.001
    assert 6 < manifest["unigram_entropy"] < 8
    assert "no faults found" in run(verify, f"dir={out_dir}")
    assert set(ShardReader(out_dir / "train_00000.hdf5").read(0, 1)) == set(SHARD_FIELDS)


def test_a_vocabulary_that_knows_no_word(tmp_path: Path, run: Run) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n\u4e00\n")
    told = run(prepare, *options(write_texts(tmp_path / "texts"), tmp_path / "out", f"vocab={tmp_path / 'vocab.txt'}"))
    assert told.startswith(
        f"2: error: vocab {tmp_path / 'vocab.txt'}: all tokens of the text are unknown ([UNK]); give"
    )
    assert not list((tmp_path / "out").glob("*.hdf5"))


def test_a_small_vocabulary_and_unknown_tokens_are_told(tmp_path: Path, run: Run) -> None:
    rng = np.random.default_rng(0)
    letters = [chr(0x4E00 + number) for number in range(1500)]
    lines = ["".join(rng.choice(letters, 40)) + "。" for _ in range(400)]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("\n\n".join("\n".join(lines[n : n + 4]) for n in range(0, 400, 4)))
    more = "vocab_size=5000", "alphabet_coverage=0.9"
    out = run(prepare, *options(tmp_path / "texts", tmp_path / "few", *more))
    manifest = read_manifest(tmp_path / "few") or {}
    tokenizer = manifest["tokenizer"]
    assert not tokenizer["strip_accents"]
    assert f"has {tokenizer['vocab_size']:,} entries, not the 5,000 of vocab_size" in out
    for split in ("train", "heldout"):
        share = tokenizer["text"][split]["after"]["unknown_share"]
        assert 0.05 < share < 0.11
        assert f"{share:.2%} of the {split} tokens are unknown ([UNK]); raise alphabet_coverage (it is 0.9)" in out
    assert "unknown ([UNK])" not in run(prepare, *options(tmp_path / "texts", tmp_path / "all", "vocab_size=5000"))


def test_two_lengths_from_the_same_ids(tmp_path: Path, run: Run) -> None:
    """Each length has a valid folder; both hold the same documents in the same splits."""
    texts, out_dir = write_texts(tmp_path / "texts"), tmp_path / "out"
    more = ["sequence_lengths=[32,64]", "max_predictions=[4,8]", "piece_mb=0.005"]
    run(prepare, *options(texts, out_dir, *more))
    documents = [d for part in sorted((out_dir / "corpus" / "text").glob("*.txt")) for d in read_text_part(part)]
    assert len(documents) == 60
    assert len(list((out_dir / "corpus" / "text").glob("*.txt"))) > 3
    vocabulary = load_vocabulary(out_dir / "tokenizer", True)
    for length, most in ((32, 4), (64, 8)):
        folder = out_dir / str(length)
        assert "no faults found" in run(verify, f"dir={folder}", "samples=0")
        for split in ("train", "heldout"):
            reader = ShardReader(shard_paths(folder, split)[0])
            assert (reader.sequence_length, reader.max_predictions) == (length, most)
            check_against_corpus(reader.read(0, reader.samples), documents, vocabulary.tokenizer, split)
        manifest = read_manifest(folder)
        assert manifest is not None
        counts = manifest["stages"][4][str(length)]
        assert sum(counts[split]["documents"] for split in ("train", "heldout")) == 60
    assert not list((out_dir / "corpus").glob("scatter*"))
    assert "reused" in run(prepare, *options(texts, out_dir, *more))


@pytest.mark.parametrize("kind", ["pair", "single"])
def test_a_sample_of_several_corpora_says_which_it_is_from(kind: str, tmp_path: Path, run: Run) -> None:
    """The corpora have different letters. A sample is of the corpus of its first segment."""
    write_texts(tmp_path / "one", seed=1)
    for name, letter in (("two", "x"), ("three", "y")):
        for path in write_texts(tmp_path / name, seed=ord(letter)).glob("*.txt"):
            path.write_text(re.sub(r"[A-Za-z]", letter, path.read_text()))
    more = [
        word for name in ("two", "three") for word in (f"+corpus@mix.{name}=text", f"mix.{name}.path={tmp_path / name}")
    ]
    more += ["duplicates.exact=false", "duplicates.near=false", "heldout_fraction=0.3", "samples_per_shard=100"]
    out_dir = tmp_path / "out"
    run(prepare, *options(tmp_path / "one", out_dir, *more, f"sample_kind={kind}", "piece_mb=0.005"))
    manifest = read_manifest(out_dir)
    assert manifest is not None
    assert manifest["corpora"] == ["corpus", "two", "three"]
    tokens = load_vocabulary(out_dir / "tokenizer").tokens
    found: Counter[int] = Counter()
    for path in [*shard_paths(out_dir, "train"), *shard_paths(out_dir, "heldout")]:
        with h5py.File(path) as file:
            sources = file["source"][:]
        arrays = ShardReader(path).read(0, 10**6)
        for source, row, segment in zip(sources, restore_ids(arrays), arrays["segment_ids"], strict=True):
            words = [tokens[i] for i in row[(segment == 0) & (row > 0)]]
            letters = set("".join(words[1:-1])) - set("#.")
            assert letters == {1: {"x"}, 2: {"y"}}.get(source, letters - {"x", "y"})
            found[int(source)] += 1
    assert min(found.values()) > 20
    said = run(verify, f"dir={out_dir}", "samples=0")
    assert re.findall(r"samples of (\w+)", said) == ["corpus", "two", "three"] * 2
    manifest["corpora"].pop()
    (out_dir / "manifest.json").write_text(json.dumps(manifest))
    assert "a sample is of corpus 2; manifest.json names 2" in run(verify, f"dir={out_dir}")


def test_one_corpus_needs_no_source(prepared: tuple[Path, Path]) -> None:
    _, out_dir = prepared
    assert "corpora" not in (read_manifest(out_dir) or {})
    for path in out_dir.glob("*.hdf5"):
        with h5py.File(path) as file:
            assert set(file) == set(SHARD_FIELDS)


def test_corpora_are_mixed_by_weight(tmp_path: Path, run: Run) -> None:
    """Corpora of weight 2.5 and 1 give tokens in that proportion, counted by a word that only one of them has."""
    write_texts(tmp_path / "one", seed=1)
    write_texts(tmp_path / "two", seed=2)
    for path in (tmp_path / "two").glob("*.txt"):
        path.write_text(re.sub(r"[A-Za-z]+", "zzz", path.read_text()))
    more = ["+corpus@mix.other=text", f"mix.other.path={tmp_path / 'two'}", "mix.other.weight=2.5", "dupe_factor=2"]
    more += ["duplicates.exact=false", "duplicates.near=false", "mix.other.licence=CC0", "heldout_fraction=0"]
    out_dir = tmp_path / "out"
    run(prepare, *options(tmp_path / "one", out_dir, *more, "sample_kind=single"))
    manifest = read_manifest(out_dir)
    assert manifest is not None
    assert [(source["licence"], source["documents"]) for source in manifest["sources"]] == [
        ("not stated (corpus.licence)", 60),
        ("CC0", 60),
    ]
    zzz = load_vocabulary(out_dir / "tokenizer", True).tokenizer.encode("zzz", add_special_tokens=False).ids
    words = {False: 0, True: 0}
    per_copy = {False: 0, True: 0}
    for path in shard_paths(out_dir, "train"):
        arrays = ShardReader(path).read(0, 10**6)
        rows, sizes = restore_ids(arrays), arrays["input_mask"].sum(1).astype(int)
        for row, size in zip(rows, sizes, strict=True):
            words[bool(np.isin(row[1 : size - 1], zzz).mean() > 0.5)] += int(size) - 2
    encoder = load_vocabulary(out_dir / "tokenizer", True).tokenizer
    for part in (out_dir / "corpus" / "text").glob("*.txt"):
        for document in read_text_part(part):
            for sentence in encoder.encode_batch(document, add_special_tokens=False):
                per_copy["zzz" in document[0].lower()] += len(sentence.ids)
    assert words[False] == 2 * per_copy[False]
    assert words[True] == 5 * per_copy[True]
    assert "single segment          100.0%" in run(verify, f"dir={out_dir}", "samples=1")
