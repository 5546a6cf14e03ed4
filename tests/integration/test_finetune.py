"""Fine-tuning from files to scores and submissions, on languages that a tiny model learns in seconds."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertForPreTraining, BertTokenizerFast

from bert_pretrain.distributed.preemption import StopRequest
from bert_pretrain.distributed.world import World
from bert_pretrain.errors import ConfigError
from bert_pretrain.finetune.pretrained import find_model, new_model
from bert_pretrain.finetune.run import finetune
from bert_pretrain.finetune.tasks import hub_rows
from tests.bert_pretrain.finetune.test_squad import WORDS
from tests.bert_pretrain.finetune.test_tasks import composed
from tests.conftest import assert_as_new_files, run_module
from tests.hub_server import HubServer

transformers.utils.logging.set_verbosity_error()
ALONE = World(0, 0, 1, torch.device("cpu"))
FAST = ("training.lr=0.01", "training.batch_size=8", "training.max_length=32", "seeds=[1,2]", "device=cpu")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as export writes it: a pretrained model with its heads, and a tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertForPreTraining(config).save_pretrained(folder)
    wordpiece = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True)
    BertTokenizerFast(tokenizer_object=wordpiece._tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sst2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences with "who" are good, those with "what" bad."""
    folder, rng = tmp_path_factory.mktemp("sst2"), np.random.default_rng(5)
    for name, count in (("train.tsv", 66), ("dev.tsv", 21)):
        lines = ["sentence\tlabel"]
        for label in rng.integers(0, 2, count):
            words = [*rng.choice(list("abcdefg"), 4), ["what", "who"][label]]
            lines.append(f"{' '.join(rng.permutation(words))}\t{label}")
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def test_a_model_of_the_hub_is_downloaded_once_and_scores_as_its_folder(
    tmp_path: Path, model_dir: Path, sst2: Path, hub: HubServer
) -> None:
    hub.add("model", "lab/bert", {path.name: path.read_bytes() for path in model_dir.iterdir()})
    options = (f"data.dir={sst2}", "training.epochs=0.2")
    found = run("sst2", Path("lab/bert"), tmp_path / "hub", *options)
    hub.faults["GET "] = hub.faults["HEAD "] = [0] * 100
    again = run("sst2", Path("lab/bert"), tmp_path / "cache", *options)
    local = run("sst2", model_dir, tmp_path / "folder", *options)
    losses = [[row["training_loss"] for row in each["runs"]] for each in (found, again, local)]
    assert losses[0] == losses[1] == losses[2]
    assert found["options"]["model_dir"] == "lab/bert"


def squad_file(path: Path, count: int, seed: int) -> None:
    """The answer to every question is f or g, whichever is there; some contexts have neither."""
    rng, paragraphs = np.random.default_rng(seed), []
    for number in range(count):
        words = [str(word) for word in rng.permutation(list("abcde"))]
        place, question = int(rng.integers(0, 5)), {"id": f"{seed}-{number}", "question": "Who is the?"}
        if number % 4:
            words.insert(place, "fg"[number % 2])
            start = len(" ".join([*words[:place], ""]))
            question |= {"answers": [{"text": words[place], "answer_start": start}], "is_impossible": False}
        else:
            question |= {"answers": [], "is_impossible": True}
        paragraphs.append({"context": " ".join(words), "qas": [question]})
    path.write_text(json.dumps({"version": "v2.0", "data": [{"title": "t", "paragraphs": paragraphs}]}))


def run(task: str, model_dir: Path, out_dir: Path, *options: str) -> dict:
    options = (*FAST, f"out_dir={out_dir}", *options)
    finetune(composed(task, *options, f"model_dir={model_dir}"), ALONE, StopRequest())
    return json.loads((out_dir / "results.json").read_text())


def test_sentences_from_files_to_scores_and_submissions(
    tmp_path: Path, model_dir: Path, sst2: Path, capsys: pytest.CaptureFixture
) -> None:
    found = run("sst2", model_dir, tmp_path, f"data.dir={sst2}", "training.epochs=10", "save_models=true")
    assert [row["seed"] for row in found["runs"]] == [1, 2]
    assert_as_new_files(tmp_path / "seed_1/model")
    assert found["median"]["accuracy"] >= 95.0
    assert found["options"]["training"]["lr"] == 0.01
    gold = [line.split("\t")[1] for line in (sst2 / "dev.tsv").read_text().splitlines()[1:]]
    submitted = (tmp_path / "seed_1/dev/SST-2.tsv").read_text().splitlines()
    assert submitted[0] == "index\tprediction"
    rows = [line.split("\t") for line in submitted[1:]]
    assert [row[0] for row in rows] == [str(number) for number in range(21)]
    right = sum(row[1] == label for row, label in zip(rows, gold, strict=True))
    assert found["runs"][0]["accuracy"] == pytest.approx(100 * right / 21)
    shown = capsys.readouterr().out
    assert shown.count("accuracy") == 3  # a line a seed, the head of the table
    assert re.search(r"^seed 2 \(2 of 2\)  step 90/90  loss 0\.\d{4}  [\d,.]+ examples/s  0s left$", shown, re.M)
    assert "median" in shown
    assert "deviation" in shown
    again = run("sst2", tmp_path / "seed_1/model", tmp_path / "again", f"data.dir={sst2}", "training.epochs=0.1")
    assert again["least"]["accuracy"] >= 90.0  # the saved model goes on from what it learned


def test_questions_from_files_to_scores_and_submissions(tmp_path: Path, model_dir: Path) -> None:
    squad_file(tmp_path / "train-v2.0.json", 160, 1)
    squad_file(tmp_path / "dev-v2.0.json", 24, 2)
    options = (f"data.dir={tmp_path}", "training.epochs=16", "task.answers.doc_stride=6", "seeds=[1]")
    found = run("squad_v2", model_dir, tmp_path / "out", *options)
    assert found["median"]["f1"] >= 90.0
    assert found["median"]["best_f1"] >= found["median"]["f1"]
    answers = json.loads((tmp_path / "out/seed_1/dev/predictions.json").read_text())
    odds = json.loads((tmp_path / "out/seed_1/dev/null_odds_predictions.json").read_text())
    assert set(answers) == set(odds) == {f"2-{number}" for number in range(24)}
    assert all((answers[key] == "") == (odds[key] > 0) for key in answers)


def test_two_evaluation_sets_and_test_sets(tmp_path: Path, model_dir: Path) -> None:
    head = "index\tsentence1\tsentence2\tgold_label\n"
    labelled = head + "0\ta b\tc\tneutral\n1\ta\tb\tentailment\n"
    (tmp_path / "MNLI").mkdir()
    for name in ("train", "dev_matched", "dev_mismatched"):
        (tmp_path / f"MNLI/{name}.tsv").write_text(labelled)
    (tmp_path / "diagnostic").mkdir()
    for name in ("MNLI/test_matched.tsv", "diagnostic/diagnostic.tsv"):
        (tmp_path / name).write_text("index\tsentence1\tsentence2\n0\ta\tc\n")
    options = (f"data.dir={tmp_path / 'MNLI'}", "seeds=[1]", "training.epochs=1", "predict_test=true")
    found = run("mnli", model_dir, tmp_path / "out", *options)
    assert {"accuracy", "mismatched_accuracy"} <= set(found["median"])
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.tsv")}
    names = ("dev/MNLI-m", "dev_mismatched/MNLI-mm", "test/MNLI-m", "test_diagnostic/AX")
    assert written == {f"seed_1/{name}.tsv" for name in names}
    first = (tmp_path / "out/seed_1/test/MNLI-m.tsv").read_text().splitlines()[1]
    assert first.split("\t")[1] in ("entailment", "neutral", "contradiction")


def test_any_cut_of_the_batch_gives_the_same_result(tmp_path: Path, model_dir: Path, sst2: Path) -> None:
    """One rank, one rank with two micro-batches, two ranks: the same samples in a step, the same loss to rounding."""
    options = (f"data.dir={sst2}", "training.epochs=2", "seeds=[7]", "training.max_train_samples=64")
    whole = run("sst2", model_dir, tmp_path / "whole", *options)
    halves = run("sst2", model_dir, tmp_path / "halves", *options, "training.micro_batch_size=4")
    command = (*FAST, *options, "task=sst2", f"model_dir={model_dir}", f"out_dir={tmp_path / 'ranks'}")
    done = run_module("bert_pretrain.finetune", *command, processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("median") == 1
    ranks = json.loads((tmp_path / "ranks/results.json").read_text())
    for other in (halves, ranks):
        assert other["median"]["training_loss"] == pytest.approx(whole["median"]["training_loss"], rel=1e-4)
        assert other["median"]["accuracy"] == whole["median"]["accuracy"]
    submitted = [(tmp_path / name / "seed_7/dev/SST-2.tsv").read_text() for name in ("whole", "halves", "ranks")]
    assert submitted[0] == submitted[1] == submitted[2]


def test_a_model_fine_tuned_before_gets_the_head_of_the_next_task(tmp_path: Path, model_dir: Path) -> None:
    new_model(find_model(str(model_dir)), composed("mnli").task, False, 1, print).save_pretrained(tmp_path)
    squad = new_model(find_model(str(tmp_path)), composed("squad_v1").task, False, 1, print)
    assert squad.qa_outputs.weight.shape == (2, 32)
    sst2 = new_model(find_model(str(tmp_path)), composed("sst2").task, False, 1, print)
    assert sst2.classifier.weight.shape == (2, 32)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ConfigError, match=r"does not load"):
        new_model(find_model(str(tmp_path)), composed("sst2").task, False, 1, print)


def test_weights_are_the_pretrained_ones_and_new_ones_follow_the_seed(model_dir: Path) -> None:
    task = composed("mnli").task
    stored = load_file(model_dir / "model.safetensors")
    one, other = (new_model(find_model(str(model_dir)), task, False, seed, print).state_dict() for seed in (1, 2))
    scratch = new_model(find_model(str(model_dir)), task, True, 1, print).state_dict()
    name = "bert.encoder.layer.0.output.dense.weight"
    assert torch.equal(one[name], stored[name])
    assert torch.equal(other[name], stored[name])
    assert one["classifier.weight"].shape == (3, 32)
    assert not torch.equal(one["classifier.weight"], other["classifier.weight"])
    assert not torch.equal(scratch[name], stored[name])
    assert torch.equal(scratch[name], new_model(find_model(str(model_dir)), task, True, 1, print).state_dict()[name])


def test_missing_weights_are_refused_and_a_missing_pooler_reported(tmp_path: Path, model_dir: Path) -> None:
    task = composed("sst2").task
    stored = load_file(model_dir / "model.safetensors")
    for lost in ("bert.encoder.layer.0.output.dense.weight", "bert.pooler.dense.weight"):
        folder = tmp_path / lost
        shutil.copytree(model_dir, folder)
        kept = {name: value for name, value in stored.items() if name != lost}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ConfigError,
        match=r"lacks weights of the encoder, such as bert.encoder.layer.0.output.dense.weight; give a whole model",
    ):
        new_model(find_model(str(tmp_path / "bert.encoder.layer.0.output.dense.weight")), task, False, 1, print)
    messages: list[str] = []
    new_model(find_model(str(tmp_path / "bert.pooler.dense.weight")), task, False, 1, messages.append)
    assert messages[0].endswith("new, with random weights: classifier, pooler")


SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
ENCODERS = {
    "albert": ("MaskedLM", SIZES, "classifier, pooler"),
    "deberta-v2": ("MaskedLM", SIZES, "classifier, pooler"),
    "distilbert": (
        "MaskedLM",
        {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16},
        "classifier, pre_classifier",
    ),
    "electra": ("PreTraining", SIZES, "classifier"),
    "gpt2": ("CausalLM", {"n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 3, "eos_token_id": 3}, "score"),
    "roberta": ("MaskedLM", SIZES | {"pad_token_id": 0}, "classifier"),
    "xlnet": (
        "CausalLM",
        {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16, "pad_token_id": 0},
        "logits_proj, sequence_summary",
    ),
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_other_encoders_get_a_new_head(
    tmp_path: Path, model_dir: Path, sst2: Path, kind: str, capsys: pytest.CaptureFixture
) -> None:
    name, sizes, heads = ENCODERS[kind]
    config = transformers.AutoConfig.for_model(kind, vocab_size=len(WORDS), **sizes)
    getattr(transformers, f"AutoModelFor{name}").from_config(config).save_pretrained(tmp_path / kind)
    tokenizer = BertTokenizerFast.from_pretrained(model_dir)
    tokenizer.save_pretrained(tmp_path / kind)
    options = (f"data.dir={sst2}", "training.epochs=0.2", "seeds=[1]", "save_models=true")
    found = run("sst2", tmp_path / kind, tmp_path / "out", *options)
    assert 0 <= found["median"]["accuracy"] <= 100
    assert f"{kind}: new, with random weights: {heads}\n" in capsys.readouterr().out
    saved = transformers.AutoConfig.from_pretrained(tmp_path / "out/seed_1/model")
    assert saved.pad_token_id == tokenizer.pad_token_id
    if kind == "gpt2":  # as GPT-2's own on the hub
        tokenizer.pad_token = None
        tokenizer.save_pretrained(tmp_path / kind)
        with pytest.raises(ConfigError, match=r"its tokenizer has no padding token, which batches need; name one"):
            run("sst2", tmp_path / kind, tmp_path / "none", *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("model_dir=nowhere/at/all",), r"model_dir is 'nowhere/at/all', which is neither a folder"),
        (("model_dir={run}",), r"no exported folder .*; it is a run: export it with bert-pretrain export run_dir="),
        (("model_dir={bare}",), r"has no tokenizer that loads \(no tokenizer.json\)"),
        (("training.max_length=64",), r"training.max_length is 64; allowed: up to 32"),
        (("training.lr=-1",), r"training.lr is -1"),
        (("training.epochs=0",), r"training.epochs is 0"),
        (("training.precision=int8",), r"training.precision is 'int8'"),
        (("training.micro_batch_size=3",), r"training.micro_batch_size is 3; allowed: what divides 8"),
        (("seeds=[]",), r"seeds is \[\]"),
        (("seeds=[1,1]",), r"seeds is \[1, 1\]"),
        (("data.dir=/nowhere",), r"data.dir is '/nowhere', and holds no train.tsv"),
        (("out_dir=/proc/out",), r"out_dir /proc/out cannot be written"),
        (("out_dir={done}",), r"holds results; give another, or overwrite=true"),
        (("+task.metric=f1",), r"there is no option 'task.metric'"),
        (("task.kind=translation",), r"task.kind is 'translation'"),
    ],
)
def test_a_mistake_is_reported_before_training(
    tmp_path: Path, model_dir: Path, sst2: Path, options: tuple[str, ...], message: str
) -> None:
    folders = {name: tmp_path / name for name in ("run", "bare", "done")}
    (folders["run"] / "checkpoints").mkdir(parents=True)
    folders["bare"].mkdir()
    shutil.copy(model_dir / "config.json", folders["bare"])
    folders["done"].mkdir()
    (folders["done"] / "results.json").write_text("{}")
    base = (*FAST, f"model_dir={model_dir}", f"data.dir={sst2}", f"out_dir={tmp_path / 'out'}")
    with pytest.raises(ConfigError, match=message):
        finetune(composed("sst2", *base, *(option.format(**folders) for option in options)), ALONE, StopRequest())
    assert not (tmp_path / "out/results.json").exists()


def test_a_mistyped_task_gets_the_list_of_tasks() -> None:
    with pytest.raises(ConfigError, match=r"there is no task 'sst'; did you mean .*sst2.* allowed: .*squad_v2"):
        composed("sst")


def test_the_hub_data_set_is_that_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    requests = []

    def load(path: str, name: str | None, split: str) -> list[dict]:
        requests.append((path, name, split))
        if name == "mrpc":
            raise ConnectionError("no route\nfor hf_secret0123456789")
        return [{"premise": "a", "hypothesis": "b", "label": 2, "idx": 0}]

    monkeypatch.setenv("HF_TOKEN", "hf_secret0123456789")
    monkeypatch.setattr(datasets, "load_dataset", load)
    mnli = composed("mnli").task
    assert hub_rows(mnli, mnli.splits["dev_mismatched"])[0]["label"] == 2
    hub_rows(mnli, mnli.splits["test_diagnostic"])
    assert requests == [("nyu-mll/glue", "mnli", "validation_mismatched"), ("nyu-mll/glue", "ax", "test")]
    with pytest.raises(
        ConfigError, match=r"nyu-mll/glue \(mrpc, train\) cannot be loaded .*no route for \*\*\*.* data.dir"
    ):
        hub_rows(composed("mrpc").task, composed("mrpc").task.splits["train"])


def test_tags_from_files_to_scores_and_a_conll_file(tmp_path: Path, model_dir: Path) -> None:
    """f and g are entities of two types, and "who" before one belongs to it."""
    rng = np.random.default_rng(7)
    for name, count in (("train.conll", 80), ("valid.txt", 20), ("test.txt", 5)):
        sentences = []
        for _ in range(count):
            words = [(str(word), "O") for word in rng.choice(list("abcde"), 4)]
            kind = int(rng.integers(0, 2))
            entity = [("fg"[kind], f"B-{'XY'[kind]}"), ("who", f"I-{'XY'[kind]}")][: 1 + int(rng.integers(0, 2))]
            at = int(rng.integers(0, 5))
            sentences.append("\n".join(f"{word} -X- {tag}" for word, tag in [*words[:at], *entity, *words[at:]]))
        (tmp_path / name).write_text("\n\n".join(sentences) + "\n")
    options = (f"data.dir={tmp_path}", "training.epochs=15", "seeds=[1]", "predict_test=true", "save_models=true")
    found = run("ner", model_dir, tmp_path / "out", *options)
    assert list(found["median"])[:4] == ["f1", "precision", "recall", "accuracy"]
    assert found["median"]["f1"] >= 95.0
    assert found["median"]["test_f1"] >= 80.0
    assert found["options"]["task"]["labels"] == ["O", "B-X", "I-X", "B-Y", "I-Y"]

    def words(path: Path) -> list[list[str]]:
        return [[line.split()[0] for line in block.splitlines()] for block in path.read_text().split("\n\n")]

    assert words(tmp_path / "out/seed_1/dev/dev.txt") == words(tmp_path / "valid.txt")
    model = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "out/seed_1/model")
    assert model.config.id2label == {0: "O", 1: "B-X", 2: "I-X", 3: "B-Y", 4: "I-Y"}
