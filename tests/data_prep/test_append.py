"""Appending to a finished set: what is added, what is known, and that a stop in the midst changes nothing."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from bert_pretrain.data.dataset import open_split
from bert_pretrain.data.shard_directory import read_manifest, shard_paths
from bert_pretrain.data.shards import ShardReader
from data_prep import prepare, verify
from data_prep.engine import append
from data_prep.report import run as report
from data_prep.samples.tokenised import is_heldout
from tests.bert_pretrain.data.test_loader import config
from tests.data_prep.test_prepare import Run, content, options, read_text_part, run, write_texts

__all__ = ["run"]  # a fixture
BOTH = ("sequence_lengths=[32,48]", "corpus.drop_repeated_sentences=true")


def blocks(folder: Path) -> list[str]:
    """The documents of a folder of texts."""
    return [text for path in sorted(folder.glob("*.txt")) for text in path.read_text().strip().split("\n\n")]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``old``: 60 documents; ``new``: 24 others, 5 of old, one with a word changed, one of which half is repeated."""
    folder = tmp_path_factory.mktemp("texts")
    old, new = (blocks(write_texts(folder / name, count, seed)) for name, count, seed in (("o", 60, 0), ("n", 24, 1)))
    changed = old[7].replace(old[7].split()[40], "changed", 1)
    half = "\n".join([*old[8].split("\n")[:2], *new[0].split("\n")[:1], "Nobody has ever said this one before."])
    for name, documents in (("old", old), ("new", [*new, *old[:5], changed, half])):
        (folder / name).mkdir()
        (folder / name / f"{'a' if name == 'old' else 'b'}.txt").write_text("\n\n".join(documents) + "\n")
    return folder


@pytest.fixture(scope="module")
def finished(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set of ``old``, which no test changes."""
    out_dir = tmp_path_factory.mktemp("finished") / "out"
    prepare.main(options(texts / "old", out_dir, *BOTH))
    return out_dir


@pytest.fixture(scope="module")
def grown(texts: Path, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``finished`` with ``new`` appended, which no test changes."""
    out_dir = tmp_path_factory.mktemp("grown") / "out"
    shutil.copytree(finished, out_dir)
    prepare.main(options(texts / "new", out_dir, *BOTH, "append=true"))
    return out_dir


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


def shards(out_dir: Path) -> dict[str, bytes]:
    return {name: text for name, text in content(out_dir).items() if name.endswith(".hdf5")}


def test_new_documents_get_shards_of_their_own(texts: Path, finished: Path, grown: Path, run: Run) -> None:
    before, after = shards(finished), shards(grown)
    assert before.items() < after.items()
    stages = {stage["stage"]: stage for stage in read_manifest(grown / "32")["stages"]}
    assert stages["repeats (append 1)"]["exact_duplicates"] == 5
    assert stages["repeats (append 1)"]["near_duplicates"] == 1
    parts = read_text_part(grown / "corpus/append_0001/text/000000.txt")
    assert len(parts) == 31
    new = stages["token ids (append 1)"]
    assert (new["documents"], new["documents_dropped_as_repeated"]) == (25, 6)
    known = {sentence.casefold() for part in read_text_part(finished / "corpus/text/000000.txt") for sentence in part}
    held = 0
    for document in [*parts[:24], parts[30]]:
        fresh = [sentence for sentence in document if sentence.casefold() not in known]
        known |= {sentence.casefold() for sentence in document}
        held += is_heldout("\n".join(fresh).encode(), 12345, 0.2)
    assert 0 < held == new["heldout_documents"]
    for length in (32, 48):
        folder = grown / str(length)
        old, manifest = read_manifest(finished / str(length)), read_manifest(folder)
        assert manifest["shards"][: len(old["shards"])] == old["shards"]
        assert manifest["options"] == old["options"]
        for split in ("train", "heldout"):
            names = [path.name for path in shard_paths(folder, split)]
            assert names == [f"{split}_{number:05d}.hdf5" for number in range(len(names))]
            assert len(names) > len(shard_paths(finished / str(length), split))
        headers = {ShardReader(path).header for path in shard_paths(folder, "train")}
        assert len(headers) == 1
        targets = np.zeros(150)
        for path in shard_paths(folder, "train"):
            arrays = ShardReader(path).read(0, 1000)
            labels = arrays["masked_lm_ids"][arrays["masked_lm_positions"] > 0]
            targets += np.bincount(labels.astype(int), minlength=150)
        share = targets[targets > 0] / targets.sum()
        assert manifest["unigram_entropy"] == pytest.approx(-(share * np.log(share)).sum())
        assert "no faults found" in run(verify, f"dir={folder}")
    run(report, f"dir={folder}")
    assert "text (append 1)" in (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    pieces = sum(stages[name]["pieces"]["after"]["train"]["pieces"] for name in ("token ids", "token ids (append 1)"))
    words = sum(stages[name]["pieces"]["after"]["train"]["words"] for name in ("token ids", "token ids (append 1)"))
    assert manifest["tokenizer"]["text"]["train"]["after"]["pieces_a_word"] == round(pieces / words, 4)


def test_what_is_dropped_is_what_all_the_text_at_once_would_drop(texts: Path, grown: Path, tmp_path: Path) -> None:
    """Documents and sentences are numbered over the whole set, so that the numbers dropped are the same."""
    both = tmp_path / "both"
    for name in ("old", "new"):
        shutil.copytree(texts / name, both, dirs_exist_ok=True)
    prepare.main(options(both, tmp_path / "whole", *BOTH))
    whole, parts = tmp_path / "whole/corpus/repeats", [grown / "corpus/repeats", grown / "corpus/append_0001/repeats"]
    np.testing.assert_array_equal(np.load(parts[1] / "repeated.npy"), np.load(whole / "repeated.npy"))
    sentences = [np.load(part / "sentences_0000.npy") for part in parts]
    np.testing.assert_array_equal(np.concatenate(sentences), np.load(whole / "sentences_0000.npy"))
    assert len(sentences[1]) == 12  # of the document "half": two paragraphs of old, one of new, of four sentences each


def test_the_same_documents_again_add_nothing(texts: Path, grown: Path, tmp_path: Path, run: Run) -> None:
    out_dir = Path(shutil.copytree(grown, tmp_path / "out"))
    before = content(out_dir)
    for name in ("old", "new"):
        told = run(prepare, *options(texts / name, out_dir, *BOTH, "append=true"))
        assert told.strip() == f"{out_dir} holds the text of these corpora already: nothing was added"
    shutil.copytree(texts / "new", tmp_path / "copied")  # other files with the same documents
    told = run(prepare, *options(tmp_path / "copied", out_dir, *BOTH, "append=true"))
    assert told.splitlines()[-1] == f"{out_dir}: no document of these corpora is new: nothing was added"
    assert "reused" in run(prepare, *options(texts / "old", out_dir, *BOTH))
    assert content(out_dir) == before


def test_a_second_append_knows_the_first(texts: Path, grown: Path, tmp_path: Path, run: Run) -> None:
    out_dir, more = Path(shutil.copytree(grown, tmp_path / "out")), write_texts(tmp_path / "more", 20, 9)
    shutil.copy(texts / "new/b.txt", more / "b.txt")
    told = run(prepare, *options(more, out_dir, *BOTH, "append=true"))
    assert "exact duplicates 31" in told
    manifest = read_manifest(out_dir / "48")
    assert [row["corpus"]["path"] for row in manifest["appended"]] == [str(texts / "new"), str(more)]
    assert "text (append 2)" in [stage["stage"] for stage in manifest["stages"]]
    assert "no faults found" in run(verify, f"dir={out_dir / '48'}")


def test_a_corpus_of_another_name(texts: Path, copy: Path, run: Run) -> None:
    """Its samples tell that they are of the second corpus; those of the shards before are of the first."""
    books = ["+corpus@mix.books=text", f"mix.books.path={texts / 'new'}"]
    prepare_old = [word for word in options(texts / "old", copy, *BOTH, "append=true") if "path" not in word]
    one = copy.parent / "one"
    one.mkdir()
    (one / "a.txt").write_text("\n\n".join(blocks(write_texts(one / "x", 8, 5))))
    run(prepare, *prepare_old, f"corpus.path={one / 'a.txt'}", *books)
    manifest = read_manifest(copy / "32")
    assert manifest["corpora"] == ["corpus", "books"]
    train = open_split(config(copy / "32", sequence_length=32), "train", 150)
    numbers, names = train.sources()
    assert names == ["corpus", "books"]
    old = sum(row["samples"] for row in manifest["shards"] if row["split"] == "train")
    assert len(numbers) == old
    assert set(numbers.tolist()) == {0, 1}


@pytest.mark.parametrize("held", [True, False])
def test_one_new_document(held: bool, texts: Path, copy: Path, run: Run, tmp_path: Path) -> None:
    """A random next segment comes from another document of the split; nothing is changed."""
    before, several = content(copy), blocks(write_texts(tmp_path / "several", 20, 100))
    text = next(text for text in several if is_heldout(re.sub(r"(?<=\.) ", "\n", text).encode(), 12345, 0.2) == held)
    (tmp_path / "one.txt").write_text(f"{text}\n\n{blocks(texts / 'old')[0]}\n")
    told = run(prepare, *options(tmp_path / "one.txt", copy, *BOTH, "append=true"))
    if held:
        assert "1 new document is held out, and left out" in told
        assert told.splitlines()[-1].endswith("nothing was added")
    else:
        assert told.startswith("2: error: of the 1 new documents 1 is for training")
    assert content(copy) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["seed=1"], "seed was 12345, now 1"),
        (["duplicates.similarity=0.9"], "duplicates.similarity was 0.8, now 0.9"),
        (["vocab_size=200"], "vocab_size was 150, now 200"),
        (["sequence_lengths=[32]"], "holds no finished shards (manifest.json) of these sequence_lengths"),
    ],
)
def test_other_options(changes: list[str], message: str, texts: Path, copy: Path, run: Run) -> None:
    before = content(copy)
    given = {change.split("=")[0] for change in changes}
    kept = [word for word in BOTH if word.split("=")[0] not in given]
    told = run(prepare, *options(texts / "new", copy, *kept, *changes, "append=true"))
    assert told.startswith("2: error")
    assert message in told
    assert content(copy) == before


def test_a_set_that_is_not_there_or_lacks_its_keys(texts: Path, copy: Path, tmp_path: Path, run: Run) -> None:
    told = run(prepare, *options(texts / "new", tmp_path / "nowhere", *BOTH, "append=true"))
    assert f"out_dir {tmp_path / 'nowhere'} holds no finished shards" in told
    assert not (tmp_path / "nowhere").exists()
    (copy / "32/train_00099.hdf5").write_bytes(b"mine")
    command = options(texts / "new", copy, *BOTH, "append=true")
    assert "holds train_00099.hdf5, which manifest.json does not list" in run(prepare, *command)
    (copy / "32/train_00099.hdf5").unlink()
    (copy / "corpus/text/000000.keys.npz").unlink()
    told = run(prepare, *command)
    assert told.startswith("2: error: append is true, but ")
    assert "lacks what is kept to know the 60 documents of the set" in told
    shutil.rmtree(copy / "corpus")
    assert "lacks what is kept to know the 60 documents of the set" in run(prepare, *command)
    (copy / "tokenizer/tokenizer.json").write_text(
        (copy / "tokenizer/tokenizer.json").read_text().replace('"lowercase": true', '"lowercase": false')
    )
    assert "is not the tokenizer that the shards" in run(prepare, *command)


@pytest.mark.parametrize("name", ["text/000000.keys.npz", "repeats/repeated.npy", "shards_32/train_00000.npy"])
@pytest.mark.parametrize("size", [0, 40])
def test_a_damaged_file_of_the_set(name: str, size: int, texts: Path, copy: Path, run: Run) -> None:
    path = copy / "corpus" / name
    path.write_bytes(path.read_bytes()[:size])
    before = content(copy)
    told = run(prepare, *options(texts / "new", copy, *BOTH, "append=true"))
    assert told.startswith(f"2: error: {path} cannot be read: it is damaged (")
    assert content(copy) == before


class Stopped(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize("moment", [0, 1, 2])
def test_stopped_while_it_becomes_part_of_the_set(
    moment: int, texts: Path, finished: Path, grown: Path, copy: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first manifest, between the two, and after both: the next append, of any text, finishes it."""
    written = 0

    def write(folder: Path, manifest: dict) -> None:
        nonlocal written
        if written == moment:
            raise Stopped
        written += 1
        write_manifest(folder, manifest)

    write_manifest = append.write_manifest
    command = options(texts / "new", copy, *BOTH, "append=true")
    with monkeypatch.context() as patched:
        patched.setattr(append, "write_manifest", write)
        if moment == 2:
            patched.setattr(shutil, "rmtree", lambda *_, **__: write(copy, {}))
        monkeypatch.setattr(sys, "argv", ["command", *command])
        with pytest.raises(Stopped):
            prepare.main()
    if moment < 2:
        assert "reused" in run(prepare, *options(texts / "old", copy, *BOTH))
    assert "holds the text of these corpora already" in run(prepare, *command)
    assert shards(copy) == shards(grown)
    stripped = [{n: t for n, t in content(out).items() if n.endswith("manifest.json")} for out in (copy, grown)]
    assert stripped[0] == stripped[1]


def test_an_append_that_was_stopped_goes_on_with_the_same_command_only(
    texts: Path, copy: Path, grown: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise Stopped

    before, command = shards(copy), options(texts / "new", copy, *BOTH, "append=true")
    with monkeypatch.context() as patched:
        patched.setattr("data_prep.preparation.append_shards", stop)
        monkeypatch.setattr(sys, "argv", ["command", *command])
        with pytest.raises(Stopped):
            prepare.main()
    assert "no faults found" in run(verify, f"dir={copy / '32'}")
    assert {name: text for name, text in shards(copy).items() if not name.startswith("corpus")} == before
    told = run(prepare, *options(texts / "new/b.txt", copy, *BOTH, "append=true"))
    assert "holds an append that has not come to its end" in told
    assert "corpus.path was" in told
    times = {path: path.stat().st_mtime_ns for path in copy.glob("corpus/append_0001/[it]*/*.done.json")}
    assert "from the interrupted run" in run(prepare, *command)
    assert len(times) == 2  # text, ids
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert shards(copy) == shards(grown)


def test_a_mistake_in_the_new_text_leaves_no_trace(copy: Path, tmp_path: Path, run: Run) -> None:
    before = content(copy)
    (tmp_path / "empty.txt").write_text("\n")
    assert "holds no text" in run(prepare, *options(tmp_path / "empty.txt", copy, *BOTH, "append=true"))
    assert content(copy) == before
    assert json.loads((copy / "32/manifest.json").read_text())["shards"]
