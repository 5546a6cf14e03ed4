"""Rows of token ids and streamed text: the samples are those of ``transformers``, in one order for any cut."""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from bert_pretrain.config import PretrainConfig
from bert_pretrain.data.batch_plan import BatchPlan
from bert_pretrain.data.loader import TrainingData
from bert_pretrain.data.masking_rule import restore_ids
from bert_pretrain.data.options import DataConfig
from bert_pretrain.data.ready_made import open_ready_made
from bert_pretrain.data.ready_made_options import READY_MADE_ONLY
from bert_pretrain.data.row_source import TextFiles, check_address, open_source
from bert_pretrain.data.sample_order import SampleOrder
from bert_pretrain.data.shards import Arrays
from bert_pretrain.data.text_stream import StreamReader
from bert_pretrain.errors import ConfigError, OutageError
from bert_pretrain.files import retry
from bert_pretrain.options.config_loading import load_config
from bert_pretrain.same_run import differing_options
from tests.bert_pretrain.data.test_loader import config as shard_config

LENGTH, BATCH, WORDS = 16, 12, 97
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def make_tokenizer(folder: Path) -> Path:
    """WordPiece with 5 special tokens and 92 words."""
    folder.mkdir(exist_ok=True)
    vocab = {token: number for number, token in enumerate([*SPECIAL, *(f"w{n}" for n in range(WORDS - len(SPECIAL)))])}
    made = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def texts() -> list[str]:
    """200 rows of 0 to 50 words, which the seed makes differ."""
    rng = np.random.default_rng(5)
    return [" ".join(f"w{n}" for n in rng.integers(0, WORDS - 5, rng.integers(0, 51))) for _ in range(200)]


def by_hand(tokenizer: Path, rows: list[str]) -> list[tuple[int, ...]]:
    """The samples of the rows, by transformers, sorted."""
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    found = loaded([row for row in rows if row], truncation=True, max_length=LENGTH, return_overflowing_tokens=True)
    return sorted(map(tuple, found["input_ids"]))


def save_ids(folder: Path, tokenizer: Path, form: str, rows: list[str]) -> None:
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    padding = {"padding": "max_length", "max_length": 60} if form == "padded" else {}
    encoded = loaded(rows, add_special_tokens=form != "bare", **padding)
    found = datasets.Dataset.from_dict({"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]})
    if form == "bare":
        found.save_to_disk(folder)
    else:
        folder.mkdir()
        for number in range(3):
            found.shard(3, number).to_parquet(folder / f"train-{number}.parquet")


def save_text(folder: Path, rows: list[str], files: int = 5) -> None:
    folder.mkdir()
    for number in range(files):
        datasets.Dataset.from_dict({"text": rows[number::files], "title": rows[number::files]}).to_parquet(
            folder / f"{number}.parquet"
        )


def config(folder: Path, kind: str, **changes: object) -> DataConfig:
    values: dict = {"kind": kind, "masking": "dynamic", "masked_lm_prob": 0.15}
    changes["tokenizer"] = str(changes["tokenizer"])
    return shard_config(folder, **{**values, "heldout_fraction": 0.0, "shuffle_buffer": 40, "streams": 3, **changes})


Opener = Callable[..., TrainingData]


@pytest.fixture(scope="module")
def opener(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Opener:
    """``opener(form, world, rank, micro)``: the loader of a rank; with ``files`` more words for ``DataConfig``."""
    folder = tmp_path_factory.mktemp("rows")
    for form in ("bare", "framed", "padded"):
        save_ids(folder / form, tokenizer, form, texts())
    save_text(folder / "text", texts())

    def opened(
        form: str, world: int = 1, rank: int = 0, micro: int = 5, seed: int = 3, **changes: object
    ) -> TrainingData:
        kind = "streamed" if form == "text" else "pretokenised"
        options = config(folder / form, kind, tokenizer=tokenizer, **changes)
        train, _, masking = open_ready_made(options, WORDS, BATCH, seed, lambda _: None)
        order = SampleOrder(seed, train.samples, 8)
        return TrainingData(train, order, BatchPlan(BATCH, micro, world), rank, masking, 3, False)

    return opened


FORMS = ("bare", "framed", "padded", "text")


def originals(arrays: Arrays) -> list[tuple[int, ...]]:
    lengths = arrays["input_mask"].sum(1)
    return [tuple(row[:length].tolist()) for row, length in zip(restore_ids(arrays), lengths, strict=True)]


def samples(data: TrainingData, start: int, stop: int) -> list[tuple[int, ...]]:
    return [sample for arrays in data._blocks.read(start, stop) for sample in originals(arrays)]


@pytest.mark.parametrize("form", FORMS)
def test_an_epoch_is_what_transformers_gives(opener: Opener, tokenizer: Path, form: str) -> None:
    expected = by_hand(tokenizer, texts())
    data = opener(form, streams=1)
    found = [samples(data, epoch * len(expected), (epoch + 1) * len(expected)) for epoch in range(3)]
    assert [sorted(epoch) for epoch in found] == [expected] * 3
    assert found[0] != found[1] != found[2]
    neighbours = [place for place, row in enumerate(found[0][:-1]) if row + found[0][place + 1] in expected]
    assert len(neighbours) < 5


def masked_rows(data: TrainingData, step: int) -> list[tuple]:
    """Each sample of a step: its ids as masked, and its labels by place."""
    found, base = [], step * BATCH
    start, stop = data.plan.rank_slice(data.rank)
    counts = data.counts(step)
    for arrays in data._blocks.read(base + start, base + stop):
        for row in range(len(arrays["input_ids"])):
            found.append(tuple(arrays[name][row].tobytes() for name in sorted(arrays)))
    assert counts.samples == len(found) == stop - start
    return found


def of_all(parts: list[TrainingData], step: int) -> list[tuple]:
    return [row for part in parts for row in masked_rows(part, step)]


@pytest.mark.parametrize("form", ["framed", "text"])
@pytest.mark.parametrize(("world", "micro"), [(2, 3), (3, 4), (5, 1)])
def test_any_number_of_ranks_gives_the_same_samples_with_the_same_masks(
    opener: Opener, form: str, world: int, micro: int
) -> None:
    whole, parts = opener(form), [opener(form, world, rank, micro) for rank in range(world)]
    for step in (0, 1, 2, 9, 47, 48, 100):
        assert of_all(parts, step) == masked_rows(whole, step)


def noted_reads(data: TrainingData) -> list[tuple[int, int]]:
    """From now on: the file, and the number of rows, of every read of ``data``."""
    assert isinstance(data._blocks, StreamReader)
    text, found = data._blocks.streams[0]._text, []
    original = text.read

    def noted(file: int, row: int = 0) -> Iterator[tuple[np.ndarray, list[str]]]:
        for rows, lines in original(file, row):
            found.append((file, len(rows)))
            yield rows, lines

    text.read = noted  # type: ignore[method-assign]
    return found


def test_a_rank_reads_only_the_files_of_its_own_streams(opener: Opener) -> None:
    data = opener("text", world=3, rank=1)
    found = noted_reads(data)
    for step in range(30):
        data.counts(step)
    assert {file for file, _ in found} == {1, 4}


@pytest.mark.parametrize("kept", [True, False])
def test_a_stream_goes_on_anywhere(opener: Opener, kept: bool) -> None:
    """From bookmarks, which spare reading from the beginning, or without, and also backwards."""
    whole = opener("text")
    expected = {step: masked_rows(whole, step) for step in range(60)}
    marks = json.loads(json.dumps(whole.bookmarks(50, lambda item: [item])))
    parts = [opener("text", 2, rank) for rank in range(2)]
    for part in parts:
        if kept:
            assert isinstance(part._blocks, StreamReader)
            part._blocks.restore(marks)
    found = [noted_reads(part) for part in parts]
    assert of_all(parts, 50) == expected[50]
    assert (sum(rows for reads in found for _, rows in reads) < 400) == kept
    for step in (51, 52, 20, 59):
        assert of_all(parts, step) == expected[step]


def test_steps_prepared_by_the_thread_are_those_read_directly(opener: Opener) -> None:
    data, other = opener("text"), opener("text")
    steps = data.steps(4)
    for step, batch in enumerate(islice(steps, 3), 4):
        found = [row for part in batch.micro_batches for row in part.input_ids.tolist()]
        assert batch.counts == other.counts(step)
        assert found == [row for part in other.micro_batches(step) for row in part.input_ids.tolist()]
    steps.close()


@pytest.mark.parametrize("form", ["framed", "text"])
def test_every_nth_row_is_held_out_and_never_trained_on(
    opener: Opener, tokenizer: Path, tmp_path: Path, form: str
) -> None:
    rows = [f"w{n} w{m}" for n in range(20) for m in range(20)]
    if form == "text":
        save_text(tmp_path / "rows", rows, 1)
    else:
        save_ids(tmp_path / "rows", tokenizer, form, rows)
    kind = "streamed" if form == "text" else "pretokenised"
    said: list[str] = []
    options = config(tmp_path / "rows", kind, tokenizer=tokenizer, heldout_fraction=0.05)
    train, held, masking = open_ready_made(options, WORDS, BATCH, 3, said.append)
    assert held is not None
    data = TrainingData(train, SampleOrder(3, train.samples, 8), BatchPlan(BATCH, 5, 1), 0, masking, 3, False)
    out = originals(held.read(0, held.samples))
    assert sorted(out) == by_hand(tokenizer, rows[10::20])
    assert held.read(0, 5)["masked_lm_positions"].any()
    trained = samples(data, 0, 800)
    assert sorted(set(trained)) == sorted(set(by_hand(tokenizer, rows)) - set(out))
    assert any("never trained on" in line for line in said)


def test_the_validation_split_is_held_out(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    for split in ("train", "validation"):
        datasets.Dataset.from_dict(
            {"text": [f"w1 w{n} {'w2' if split == 'train' else 'w3'}" for n in range(30)]}
        ).to_json(tmp_path / "rows" / f"{split}.jsonl")
    train, held, _ = open_ready_made(
        config(tmp_path / "rows", "streamed", tokenizer=tokenizer), WORDS, BATCH, 3, lambda _: None
    )
    assert held is not None
    assert {row[-2] for row in originals(held.read(0, 30))} == {8}
    data = TrainingData(train, SampleOrder(3, 1, 8), BatchPlan(BATCH, 5, 1), 0, None, 3, False)
    assert {row[-2] for row in samples(data, 0, 60)} == {7}


def test_rows_that_others_cut_from_a_text_stay_as_they_are(tokenizer: Path, tmp_path: Path) -> None:
    """As run_mlm's group_texts makes them: of one length, with special tokens anywhere. Their first token is no
    [CLS], and is never masked, because a masked position of 0 means none."""
    stream = np.random.default_rng(1).integers(5, WORDS, 40 * 32)
    stream[::37], stream[1::37] = 3, 2
    grouped = stream.reshape(40, 32)
    datasets.Dataset.from_dict({"input_ids": grouped.tolist()}).save_to_disk(tmp_path / "rows")
    options = config(tmp_path / "rows", "pretokenised", tokenizer=tokenizer, masked_lm_prob=0.9)
    train, _, masking = open_ready_made(options, WORDS, BATCH, 3, lambda _: None)
    data = TrainingData(train, SampleOrder(3, train.samples, 8), BatchPlan(BATCH, 5, 1), 0, masking, 3, False)
    assert sorted(samples(data, 0, 80)) == sorted(map(tuple, stream.reshape(80, 16).tolist()))
    for arrays in data._blocks.read(0, 80):
        masked = arrays["input_ids"] != restore_ids(arrays)
        assert masked.any()
        assert not (arrays["input_ids"][:, 0] == 4).any()


def test_cut_keeps_the_first_sample_of_a_row(tokenizer: Path, opener: Opener) -> None:
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    expected = sorted(map(tuple, loaded([t for t in texts() if t], truncation=True, max_length=LENGTH)["input_ids"]))
    for form in FORMS:
        assert sorted(samples(opener(form, streams=1, long_rows="cut"), 0, len(expected))) == expected


class Broken:
    """An iterator that fails at every third call."""

    calls = 0

    def __init__(self, found: object, error: Exception) -> None:
        self.found, self.error = iter(found), error  # type: ignore[call-overload]

    def __iter__(self) -> "Broken":
        return self

    def __next__(self) -> object:
        Broken.calls += 1
        if Broken.calls % 3 == 0:
            raise self.error
        return next(self.found)


@pytest.mark.parametrize("error", [ConnectionError("gone"), OSError(5, "input/output error")])
def test_nothing_is_lost_in_an_outage(opener: Opener, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "PAUSES", (0.0,) * 3)
    monkeypatch.setattr("bert_pretrain.data.row_source._ROWS", 7)
    expected, broken = samples(opener("text", streams=1), 0, 1500), opener("text", streams=1)
    iterate = datasets.IterableDataset.iter
    monkeypatch.setattr(datasets.IterableDataset, "iter", lambda *args: Broken(iterate(*args), error))
    Broken.calls = 0
    assert samples(broken, 0, 1500) == expected
    assert Broken.calls > 60


def test_an_outage_that_goes_on_is_one_message(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    data = opener("text")
    monkeypatch.setattr(retry, "PAUSES", (0.0,) * 3)

    def gone(*_: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets.IterableDataset, "iter", gone)
    with pytest.raises(OutageError, match=r"file \d of 5 cannot be read \(no route\), also after"):
        data.counts(0)


BAD_ROWS: dict[str, tuple[dict, str, str]] = {
    "no rows": ({"input_ids": []}, "pretokenised", "rows/state.json lists no data files, so it has no rows; write it"),
    "no text": ({"text": []}, "streamed", "rows/state.json lists no data files, so it has no rows; write it again"),
    "outside": (
        {"input_ids": [[2, 5, 3], [2, 97, 3]]},
        "pretokenised",
        "row 1 holds 97, but data.tokenizer has the ids 0",
    ),
    "negative": ({"input_ids": [[2, -1, 3]]}, "pretokenised", "row 0 holds -1"),
    "text": ({"input_ids": ["w1"]}, "pretokenised", "column 'input_ids' holds string; allowed: lists of integers"),
    "floats": ({"input_ids": [[0.5]]}, "pretokenised", "list<item: double>; allowed: lists of integers"),
    "nulls": ({"input_ids": [[2, None, 3]]}, "pretokenised", "has null among its ids"),
    "empty": ({"input_ids": [[], [2, 3]]}, "pretokenised", "all 2 rows are empty"),
    "other": ({"text": ["w1"]}, "pretokenised", "has the columns text; for text use data=streamed"),
    "ids": ({"input_ids": [[5]]}, "streamed", "has the columns input_ids; for input_ids use data=pretokenised"),
    "numbers": ({"text": [5]}, "streamed", "column 'text' holds int64; allowed: text"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_one_message(tokenizer: Path, tmp_path: Path, case: str) -> None:
    columns, kind, message = BAD_ROWS[case]
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "rows")
    with pytest.raises(ConfigError, match=r"data\.dir|data\.column") as error:
        open_ready_made(config(tmp_path / "rows", kind, tokenizer=tokenizer), WORDS, BATCH, 3, lambda _: None)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_not_as_the_first(tokenizer: Path, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["w1"] * 3}).to_parquet(tmp_path / "a.parquet")
    bad = pyarrow.StringArray.from_buffers(2, *pyarrow.array([b"w1", b"\xff"]).buffers()[1:])
    for table, message in (
        (pyarrow.table({"body": ["w1"]}), r"file 2 of 2 cannot be read \(CastError: Couldn't cast body"),
        (pyarrow.table({"text": bad}), r"file 2 of 2 cannot be read \(UnicodeDecodeError: .* invalid start byte"),
    ):
        pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
        source = open_source(config(tmp_path, "streamed", tokenizer=tokenizer), str(tmp_path))
        files = TextFiles(source, "train", config(tmp_path, "streamed", tokenizer=tokenizer))
        assert next(files.read(0))[1] == ["w1"] * 3
        with pytest.raises(ConfigError, match=message):
            next(files.read(1))


@pytest.mark.parametrize(("name", "is_read"), [("b.jsonl", True), ("b.csv", False)])
def test_files_of_no_bytes(tokenizer: Path, tmp_path: Path, name: str, is_read: bool) -> None:
    empty = tmp_path / f"a{Path(name).suffix}"
    empty.touch()
    options = config(tmp_path, "streamed", tokenizer=tokenizer)
    with pytest.raises(ConfigError, match=rf"{empty} is empty \(0 bytes\) and has no rows; write it again"):
        TextFiles(open_source(options, str(tmp_path)), "train", options)
    (tmp_path / name).write_text('{"text": "w1"}\n' if is_read else "text\nw1\n")
    if is_read:
        files = TextFiles(open_source(options, str(tmp_path)), "train", options)
        assert [texts for file in range(files.files) for _, texts in files.read(file)] == [["w1"]]
    else:
        with pytest.raises(ConfigError, match=rf"{empty} is empty \(0 bytes\)"):
            TextFiles(open_source(options, str(tmp_path)), "train", options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "trian"}, "data.split is 'trian', but data.dir .* did you mean train"),
        ({"tokenizer": "no/such/name/here"}, "data.tokenizer is 'no/such/name/here', which is no tokenizer's folder"),
        ({"masking": "static"}, "data.masking is 'static'; allowed: dynamic with data.kind=streamed"),
        ({"masked_lm_prob": None}, "data.masked_lm_prob is None; allowed: a number with data.kind=streamed"),
        ({"long_rows": "splt"}, r"data.long_rows is 'splt'; allowed: split, cut \(did you mean split"),
    ],
)
def test_wrong_options_are_one_message(tokenizer: Path, tmp_path: Path, changes: dict, message: str) -> None:
    save_text(tmp_path / "rows", ["w1"] * 3, 1)
    with pytest.raises(ConfigError, match=message):
        open_ready_made(
            config(tmp_path / "rows", "streamed", **{"tokenizer": tokenizer, **changes}),
            WORDS,
            BATCH,
            3,
            lambda _: None,
        )


def test_addresses() -> None:
    for address in ("hf://imdb", "hf://datasets/a/b", "hf://a/b@refs/convert/parquet"):
        check_address(address)
    for address, message in (("hf://datasets/a/b/c.parquet", "allowed: hf://OWNER/NAME"), ("nowhere", "no directory")):
        with pytest.raises(ConfigError, match=message):
            check_address(address)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("subset", "20231101.en", "null"),
        ("revision", "main", "null"),
        ("split", "test", "train"),
        ("column", "text", "null"),
        ("special_tokens", "add", "auto"),
        ("long_rows", "cut", "split"),
        ("heldout_split", None, "validation"),
        ("heldout_fraction", 0.05, "0.01"),
        ("heldout_samples", 5, "null"),
        ("shuffle_buffer", 40, "16384"),
        ("streams", 3, "8"),
    ],
)
def test_options_of_ready_made_sets_are_refused_with_shards(name: str, value: object, allowed: str) -> None:
    """A run that stated one, which was ignored, goes on without it."""
    with pytest.raises(ConfigError, match=rf"data.{name} is {value!r}; allowed: {allowed} with data.kind=shards"):
        shard_config(Path("shards"), **{name: value})
    assert name in READY_MADE_ONLY
    before = {"data.kind": "shards", f"data.{name}": value}
    assert differing_options({"data.kind": "shards"}, before) == []
    streamed = {"data.kind": "streamed"}
    assert differing_options({f"data.{name}": "another"} | streamed, before | streamed) == [f"data.{name}"]


def test_options_of_shards_are_refused_without(tokenizer: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.window is 100; allowed: null with data.kind=streamed"):
        config(Path("rows"), "streamed", tokenizer=tokenizer, window=100)
    with pytest.raises(ConfigError, match=r"data.whole_word_masking is True; allowed: false with data.masking=static"):
        shard_config(Path("shards"), whole_word_masking=True)


@pytest.mark.parametrize("kind", ["pretokenised", "streamed"])
def test_the_presets_compose_and_pairs_are_refused(kind: str) -> None:
    words = ["recipe=demo", f"data={kind}", "data.dir=hf://a/b", "data.tokenizer=bert-base-uncased"]
    found = load_config("pretrain", [*words, "model.next_sentence=false"], PretrainConfig).data
    assert (found.kind, found.masking, found.rows_column) == (
        kind,
        "dynamic",
        {"streamed": "text"}.get(kind, "input_ids"),
    )
    with pytest.raises(ConfigError, match=f"model.next_sentence is True; allowed: false with data.kind={kind}"):
        load_config("pretrain", words, PretrainConfig)
