"""``bert-pretrain evaluate``: the numbers of a run and of plain transformers, by corpus, and what it refuses."""

import hashlib
import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel

from bert_pretrain.data.shard_directory import write_manifest
from bert_pretrain.data.shards import write_shard
from bert_pretrain.distributed.preemption import STOP_SIGNALS, StopRequest
from bert_pretrain.errors import EXIT_STOPPED
from bert_pretrain.hub import evaluate, measure
from bert_pretrain.hub.source import find_source
from tests.bert_pretrain.training.test_trainer import trainer_for
from tests.conftest import LENGTH, VOCAB_SIZE, header, random_arrays

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(5, VOCAB_SIZE))]
CORPORA = ["corpus", "books", "wiki"]


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """The command handles signals in this process: undone afterwards."""
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def write_tokens(folder: Path, tokens: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")


def write_shards(folder: Path, heldout: int = 20, single: bool = False) -> Path:
    """Shards of three corpora, the last of which has no held-out sample."""
    write_tokens(folder / "tokenizer", TOKENS)
    rng, rows = np.random.default_rng(3), []
    tokens_hash = hashlib.sha256((folder / "tokenizer" / "vocab.txt").read_bytes()).hexdigest()
    for split, size, corpora in (("train", 30, 3), ("heldout", heldout, 2)):
        for number in range(2):
            arrays = random_arrays(rng, size)
            arrays["segment_ids"] *= not single
            head = header(split, vocab_hash=tokens_hash)
            path = folder / f"{split}_{number:05d}.hdf5"
            rows.append(write_shard(path, arrays, head, rng.integers(0, corpora, size)))
    write_manifest(folder, {"shards": rows, "corpora": CORPORA})
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data") / "mixed")


def config(**changes: object) -> BertConfig:
    shape = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": LENGTH,
        "initializer_range": 0.5,  # so that the losses differ from those of equal probabilities
    }
    return BertConfig(**{**shape, **changes})


def save(folder: Path, architecture: type = BertForPreTraining, tokens: list[str] | None = None, **changes) -> Path:
    torch.manual_seed(1)
    architecture(config(**changes)).save_pretrained(folder)
    write_tokens(folder, TOKENS if tokens is None else tokens)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model") / "bert")


def run(model: Path | str, data: Path, *words: str) -> None:
    evaluate.main([f"model_dir={model}", f"data.dir={data}", "device=cpu", *words])


def measured(tmp_path: Path, model: Path | str, data: Path, *words: str) -> dict:
    run(model, data, f"out_json={tmp_path / 'out.json'}", *words)
    return json.loads((tmp_path / "out.json").read_text())


@pytest.mark.parametrize("options", [(), ("model.next_sentence=false",)], ids=["pairs", "no next sentence"])
def test_the_numbers_are_those_of_the_runs_own_evaluation(options: tuple, tmp_path: Path, data: Path) -> None:
    """To the last bit, from the run and from its checkpoint, though it is measured by corpus too."""
    trainer = trainer_for(tmp_path / "run", data, "data.block_size=8", *options)
    trainer.config_yaml = "batch: {micro_batch_size: 4}\n"  # that of the recipe
    expected = trainer.evaluate()
    trainer._save()
    trainer._writer.finish()
    assert expected is not None
    names = {"eval_mlm_loss", "eval_mlm_accuracy"} | (set() if options else {"eval_nsp_loss", "eval_nsp_accuracy"})
    for place in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "step_00000000"):
        found = measured(tmp_path, place, data, "overwrite=true")
        assert {name: value for name, value in found.items() if name in expected} == {n: expected[n] for n in names}
    assert (found["model"]["step"], found["samples"], set(found["sources"])) == (0, 40, {"corpus", "books"})


def plain(folder: Path, data: Path, next_sentence: bool) -> dict[str, dict[str, float]]:
    """By transformers and h5py alone, in float32: the numbers of all samples and of each corpus."""
    architecture = BertForPreTraining if next_sentence else BertForMaskedLM
    model = architecture.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    shards: dict[str, list] = {}
    for path in sorted(data.glob("heldout*.hdf5")):
        with h5py.File(path) as file:
            for name, values in file.items():
                shards.setdefault(name, []).append(values[:].astype(np.int64))
    arrays = {name: torch.from_numpy(np.concatenate(parts)) for name, parts in shards.items()}
    with torch.no_grad():
        out = model(
            input_ids=arrays["input_ids"],
            attention_mask=arrays["input_mask"],
            token_type_ids=arrays["segment_ids"],
        )
    logits, positions = out.prediction_logits if next_sentence else out.logits, arrays["masked_lm_positions"]
    found = {}
    for name, number in {"all": None, "corpus": 0, "books": 1}.items():
        rows = torch.arange(len(positions)) if number is None else (arrays["source"] == number).nonzero().flatten()
        row, column = positions[rows].nonzero(as_tuple=True)
        words, labels = logits[rows][row, positions[rows][row, column]], arrays["masked_lm_ids"][rows][row, column]
        loss = float(F.cross_entropy(words, labels))
        found[name] = {
            "eval_mlm_loss": loss,
            "eval_perplexity": math.exp(loss),
            "eval_mlm_accuracy": float((words.argmax(1) == labels).float().mean()),
            "masked_tokens": len(labels),
            "samples": len(rows),
        }
        if next_sentence:
            pairs, targets = out.seq_relationship_logits[rows], arrays["next_sentence_labels"][rows]
            found[name]["eval_nsp_loss"] = float(F.cross_entropy(pairs, targets))
            found[name]["eval_nsp_accuracy"] = float((pairs.argmax(1) == targets).float().mean())
    return found


@pytest.mark.parametrize("architecture", [BertForPreTraining, BertForMaskedLM])
def test_the_numbers_are_those_of_plain_transformers(architecture: type, tmp_path: Path, data: Path) -> None:
    folder = save(tmp_path / "bert", architecture, hidden_act="gelu_new", layer_norm_eps=1e-6)
    expected = plain(folder, data, architecture is BertForPreTraining)
    found = measured(tmp_path, folder, data, "batch.micro_batch_size=7")
    assert abs(found["eval_mlm_loss"] - math.log(VOCAB_SIZE)) > 0.05
    for name, numbers in expected.items():
        row = found if name == "all" else found["sources"][name]
        assert {key: row[key] for key in numbers} == pytest.approx(numbers, rel=1e-5, abs=1e-5)
        assert ("eval_nsp_accuracy" in row) == (architecture is BertForPreTraining)
    assert found["sources"].keys() == {"corpus", "books"}
    assert (found["model"]["name"], found["model"]["step"]) == (str(folder), None)
    assert found["data"]["dir"] == str(data)
    assert {"date", "version", "device"} <= found.keys()


def test_single_segments_have_no_next_sentence(tmp_path: Path, model: Path) -> None:
    found = measured(tmp_path, model, write_shards(tmp_path / "single", single=True))
    assert not [name for name in found if "nsp" in name]
    folder = save(tmp_path / "one", type_vocab_size=1)
    assert measured(tmp_path, folder, tmp_path / "single", "overwrite=true")["samples"] == 40


def test_what_is_printed(model: Path, data: Path, capsys, monkeypatch) -> None:
    """A line for all samples and for each corpus; without a terminal, lines of progress."""
    monkeypatch.setattr(measure.LineTimer, "due", lambda timer: True)
    run(model, data, "batch.micro_batch_size=16")
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[-3:]] == ["all", "corpus", "books"]
    assert "16 of 40 samples, 0s left" in out
    assert f"model {model}: 2 layers of 16, 97 words; measured on masked words and next sentences" in out


def test_a_stopped_evaluation_writes_nothing(tmp_path: Path, model: Path, data: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(StopRequest, "requested", property(lambda _: True))
    with pytest.raises(SystemExit) as end:
        run(model, data, f"out_json={tmp_path / 'out.json'}", "batch.micro_batch_size=8")
    assert end.value.code == EXIT_STOPPED
    assert not list(tmp_path.iterdir())
    assert "stopped on request; nothing was written" in capsys.readouterr().out


def test_more_tokens_than_the_shards(tmp_path: Path, data: Path, capsys) -> None:
    """A vocabulary that was extended, and a size that was padded: the shards' tokens have the same ids."""
    expected = measured(tmp_path, save(tmp_path / "more", tokens=[*TOKENS, "new"], vocab_size=VOCAB_SIZE + 7), data)
    assert expected["samples"] == 40
    assert "taken to be" not in capsys.readouterr().out
    folder = save(tmp_path / "none")
    (folder / "vocab.txt").unlink()
    run(folder, data)
    out = capsys.readouterr().out
    assert f"model_dir '{folder}' came without a tokenizer: the same ids are taken to be the same tokens" in out


def test_the_micro_batch_size(tmp_path: Path, data: Path, model: Path) -> None:
    trainer = trainer_for(tmp_path / "run", data)
    trainer.config_yaml = "batch: {micro_batch_size: 3}\n"
    trainer._save()
    trainer._writer.finish()
    of_run, other = (find_source(str(place), "model_dir", print) for place in (tmp_path / "run", model))
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    sizes = [
        measure.samples_at_once("auto", source, 128, device) for source in (of_run, other) for device in (cpu, gpu)
    ]
    assert sizes == [3, 3, 16, 256]
    assert measure.samples_at_once(5, of_run, 128, cpu) == 5


def with_nan(folder: Path) -> Path:
    bert = BertForPreTraining(config())
    bert.bert.encoder.layer[0].output.dense.weight.data[0, 0] = float("nan")
    bert.save_pretrained(folder)
    write_tokens(folder, TOKENS)
    return folder


def roberta(folder: Path) -> Path:
    save(folder)
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stated, "model_type": "roberta"}))
    return folder


SWAPPED = [*TOKENS[:7], TOKENS[8], TOKENS[7], *TOKENS[9:]]
BAD_MODELS = {
    "no head": (
        lambda folder: save(folder, BertModel),
        "no masked-word head (cls.predictions.bias): it would be random",
    ),
    "other tokens": (lambda folder: save(folder, tokens=SWAPPED), "id 7 is 'w7' there and 'w8' here; prepare the text"),
    "fewer tokens": (lambda folder: save(folder, tokens=TOKENS[:-9], vocab_size=88), "97 tokens, the model has 88"),
    "fewer positions": (lambda folder: save(folder, max_position_embeddings=8), "samples of 16 tokens, but model_dir"),
    "segments": (lambda folder: save(folder, type_vocab_size=1), "pairs of segments, but model_dir"),
    "not finite": (with_nan, "bert.encoder.layer.0.output.dense.weight has values that are not finite"),
    "not a BERT": (roberta, "a model of another architecture (roberta)"),
    "no folder": (lambda folder: folder, "is no checkpoint: there is no such folder"),
}


def refused(capsys, *words: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        evaluate.main([*words, "device=cpu"])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    return error


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_bad_models(kind: str, tmp_path: Path, data: Path, capsys) -> None:
    make, message = BAD_MODELS[kind]
    folder = make(tmp_path / "bert")
    error = refused(capsys, f"model_dir={folder}", f"data.dir={data}", f"out_json={tmp_path / 'out.json'}")
    assert message in error
    assert str(folder) in error
    assert not (tmp_path / "out.json").exists()


def test_bad_shards(tmp_path: Path, model: Path, capsys) -> None:
    folder = write_shards(tmp_path / "data", heldout=0)
    assert "has no held-out samples" in refused(capsys, f"model_dir={model}", f"data.dir={folder}")
    folder = write_shards(tmp_path / "data")
    (folder / "tokenizer" / "vocab.txt").unlink()
    other = save(tmp_path / "other", tokens=SWAPPED)
    error = refused(capsys, f"model_dir={other}", f"data.dir={folder}")
    assert "made with another tokenizer than model_dir" in error
    assert "97 tokens of other names than its 97" in error
    (folder / "manifest.json").unlink()
    assert "a sample is of corpus 1, but manifest.json names 0" in refused(
        capsys, f"model_dir={model}", f"data.dir={folder}"
    )
    for path in folder.glob("heldout*"):
        path.unlink()
    assert "has no held-out shards" in refused(capsys, f"model_dir={model}", f"data.dir={folder}")
    missing = refused(capsys, f"model_dir={model}", f"data.dir={tmp_path / 'none'}")
    assert "which is no directory" in missing


def test_shards_without_masks(tmp_path: Path, model: Path, capsys) -> None:
    arrays = random_arrays(np.random.default_rng(1), 4)
    arrays["masked_lm_positions"][:] = 0
    write_shard(tmp_path / "heldout_0.hdf5", arrays, header("heldout"))
    error = refused(capsys, f"model_dir={model}", f"data.dir={tmp_path}")
    assert "another tokenizer" in error  # the hash of these shards is of no tokens
    (model_without := save(tmp_path / "bert")).joinpath("vocab.txt").unlink()
    error = refused(capsys, f"model_dir={model_without}", f"data.dir={tmp_path}")
    assert "held-out samples without masks" in error


def test_out_json(tmp_path: Path, model: Path, data: Path, capsys) -> None:
    """Before the model is looked at."""
    (tmp_path / "old.json").write_text("old")
    (tmp_path / "folder").mkdir()
    for name, message in (
        ("old.json", "exists; give another, or overwrite=true"),
        ("folder", "a directory; give the name of a file"),
        ("old.json/new.json", "is a file, not a directory"),
    ):
        assert message in refused(capsys, "model_dir=none", f"data.dir={data}", f"out_json={tmp_path / name}")
    assert (tmp_path / "old.json").read_text() == "old"
    run(model, data, f"out_json={tmp_path / 'old.json'}", "overwrite=true")
    assert json.loads((tmp_path / "old.json").read_text())["samples"] == 40
