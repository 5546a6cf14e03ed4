"""From text to a model that transformers loads, by the commands of the README."""

import math
from pathlib import Path
from pydoc_data.topics import topics

import h5py
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer

from tests.conftest import metric_rows, run_command, succeed


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python's manual, a document a topic, pretrained for 120 steps by two processes and exported.

    By torchrun and in new interpreters, as a user does.
    """
    home = tmp_path_factory.mktemp("end_to_end")
    (home / "text").mkdir()
    for number, text in enumerate(topics.values()):
        (home / "text" / f"{number:03d}.txt").write_text(text, encoding="utf-8")
    corpus = ("corpus=text", f"corpus.path={home / 'text'}", "corpus.documents=file", "corpus.lines=wrapped")
    shape = ("sequence_lengths=[32]", "vocab_size=1000", "heldout_fraction=0.1")
    succeed("data_prep.prepare", *corpus, *shape, f"out_dir={home / 'data'}")
    succeed("data_prep.verify", f"dir={home / 'data'}")
    recipe = ("recipe=demo", f"data.dir={home / 'data'}", f"run_dir={home / 'run'}", "data.sequence_length=32")
    model = ("model.vocab_size=1000", "model.hidden_size=64", "model.intermediate_size=128",
             "batch.global_batch_size=64", "batch.micro_batch_size=16", "optimizer.lr=0.01")  # fmt: skip
    length = ("schedule.total_steps=120", "training.evaluate_every_steps=60", "checkpoint.every_steps=60",
              "logging.every_steps=1")  # fmt: skip
    assert "global batch" in succeed("bert_pretrain.plan", *recipe, *model, *length, "devices=2", "device=cpu")
    launch = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "bert_pretrain.pretrain")
    done = run_command("python", "-m", *launch, *recipe, *model, *length, "device=cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    succeed("bert_pretrain.hub.export", f"run_dir={home / 'run'}", f"out_dir={home / 'run' / 'model'}")
    return home


def rows(home: Path) -> list[dict]:
    return metric_rows(home / "run")


def test_the_run_learned(finished: Path) -> None:
    training = [row for row in rows(finished) if "mlm_loss" in row]
    heldout = [row["eval_mlm_loss"] for row in rows(finished) if "eval_mlm_loss" in row]
    assert all(row["grad_norm"] > 0 and row["lr"] > 0 for row in training)
    assert training[0]["mlm_loss"] == pytest.approx(math.log(1000), abs=0.3)
    assert heldout[-1] < heldout[0]
    assert heldout[-1] < math.log(1000) - 1.0


def test_metrics_have_the_promised_fields(finished: Path) -> None:
    layers = [row for row in rows(finished) if "trust_ratio" in row]
    heldout = [row for row in rows(finished) if "eval_loss" in row]
    training = [row for row in rows(finished) if "loss" in row]
    assert len(layers) + len(heldout) + len(training) == len(rows(finished))
    assert all({"step", "loss", "mlm_loss", "lr"} <= row.keys() for row in training)
    assert [row["step"] for row in layers] == [40, 80, 120]
    assert all(row["trust_ratio"].keys() == row["weight_norm"].keys() == row["update_norm"].keys() for row in layers)
    assert all({"step", "eval_mlm_loss", "eval_mlm_accuracy"} <= row.keys() for row in heldout)
    assert [row["step"] for row in heldout] == [0, 60, 120]
    assert training[-1]["samples_seen"] == 64 * training[-1]["step"]


def test_transformers_computes_the_reported_loss(finished: Path) -> None:
    """The folder and the held-out shards, read with h5py and transformers alone."""
    model, report = AutoModelForPreTraining.from_pretrained(finished / "run/model", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with h5py.File(finished / "data/heldout_00000.hdf5") as file:
        shard = {name: torch.from_numpy(data[:].astype("int64")) for name, data in file.items()}
    labels = torch.full_like(shard["input_ids"], -100)
    for row in range(len(labels)):
        chosen = shard["masked_lm_positions"][row][shard["masked_lm_positions"][row] > 0]
        labels[row, chosen] = shard["masked_lm_ids"][row][: len(chosen)]
    with torch.no_grad():
        out = model.eval()(
            input_ids=shard["input_ids"],
            attention_mask=shard["input_mask"],
            token_type_ids=shard["segment_ids"],
            labels=labels,
            next_sentence_label=shard["next_sentence_labels"],
        )
    reported = [row for row in rows(finished) if "eval_loss" in row][-1]
    assert out.loss.item() == pytest.approx(reported["eval_loss"], abs=1e-4)
    guesses = out.prediction_logits.argmax(-1)[labels != -100]
    assert (guesses == labels[labels != -100]).float().mean().item() == pytest.approx(
        reported["eval_mlm_accuracy"], abs=1e-4
    )


def test_the_folder_loads_as_every_promised_class(finished: Path) -> None:
    folder = finished / "run/model"
    model, report = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == model.config.vocab_size == 1000
    fills = succeed(
        "bert_pretrain.hub.fill_mask", f"model_dir={folder}", "sentences=['The name of the [MASK] is .']", "top=3"
    )
    assert len(fills.strip().splitlines()) == 2


def test_plots_and_report_are_there(finished: Path) -> None:
    plots = sorted(path.name for path in (finished / "run/plots").glob("*.png"))
    assert {"loss.png", "accuracy.png", "learning_rate.png", "gradient_norm.png"} <= set(plots)
    assert "<dt>state</dt><dd>finished</dd>" in (finished / "run/report.html").read_text()
    page = succeed("bert_pretrain.report", f"run_dir={finished / 'run'}")
    assert "unigram entropy of the corpus" in page
    assert (finished / "run/report.html").read_text().count("<svg ") >= 6


def test_a_second_phase_starts_from_the_weights(finished: Path) -> None:
    options = ("recipe=demo", f"data.dir={finished / 'data'}", "data.sequence_length=32", "model.vocab_size=1000",
               "model.hidden_size=64", "model.intermediate_size=128", "schedule.total_steps=2", "device=cpu",
               "batch.global_batch_size=64", "logging.every_steps=1", "optimizer.lr=1e-9",
               f"init_from={finished / 'run'}")  # fmt: skip
    last = [row["eval_mlm_loss"] for row in rows(finished) if "eval_loss" in row][-1]
    for moments in ("keep", "restart", "reset"):
        run_dir = finished / f"phase2_{moments}"
        succeed("bert_pretrain.pretrain", *options, f"run_dir={run_dir}", f"init_moments={moments}")
        found = metric_rows(run_dir)
        assert [row["step"] for row in found] == [0, 1, 2, 2]
        assert found[0]["eval_mlm_loss"] == pytest.approx(last, abs=1e-6)  # that was evaluated by two ranks
        assert found[-1]["eval_mlm_loss"] == pytest.approx(last, abs=1e-3)
