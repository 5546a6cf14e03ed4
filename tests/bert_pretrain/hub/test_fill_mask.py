"""Mistakes in fill-mask are one message before anything is printed; ids without a token are no prediction."""

import shutil
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertForMaskedLM, BertModel, BertTokenizerFast

from bert_pretrain.hub import fill_mask
from tests.hub_server import HubServer

transformers.utils.logging.set_verbosity_error()
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight tokens, 16 positions, 12 rows of embeddings: four of them padding, which the model prefers."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    torch.manual_seed(3)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = BertForMaskedLM(BertConfig(vocab_size=12, max_position_embeddings=16, **sizes))
    with torch.no_grad():
        model.cls.predictions.bias[8:] = 50.0
    model.save_pretrained(folder)
    wordpiece = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True)
    BertTokenizerFast(tokenizer_object=wordpiece._tokenizer).save_pretrained(folder)
    return folder


def run(model_dir: Path, *words: str) -> None:
    fill_mask.main([f"model_dir={model_dir}", *words])


def test_each_mask_gets_all_tokens_and_nothing_else(model_dir: Path, capsys: pytest.CaptureFixture) -> None:
    run(model_dir, "sentences=['a [MASK] b [MASK]','[MASK]']", "top=8")
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0], lines[3]] == ["a [MASK] b [MASK]", "[MASK]"]
    for line in (lines[1], lines[2], lines[4]):
        pairs = [pair.split(" ") for pair in line.strip().split("   ")]
        assert sorted(word for word, _ in pairs) == sorted(WORDS)
        assert sum(float(share) for _, share in pairs) == pytest.approx(1, abs=0.05)


def test_a_model_of_the_hub(model_dir: Path, hub: HubServer, capsys: pytest.CaptureFixture) -> None:
    hub.add("model", "lab/bert", {path.name: path.read_bytes() for path in model_dir.iterdir()})
    for name in (model_dir, Path("lab/bert")):
        run(name, "sentences=['a [MASK]']", "top=3")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == lines[2:]


LONG = "a " * 14 + "[MASK]"  # 15 tokens, and [CLS] and [SEP]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((f"sentences=['a [MASK]','{LONG}']",), "has 17 tokens; allowed: up to 16, the positions of model_dir"),
        (("sentences=['[MASK]']", "top=9"), "top is 9; allowed: 1 to 8, the vocabulary of model_dir"),
        (("sentences=['a [MASK]','b c']",), "sentences: 'b c' has no [MASK]; put [MASK] in place of a word"),
        (("sentences=['a [MASK]','']",), "sentences: '' is empty; put [MASK]"),
        (("sentences=[]",), "sentences is []; allowed: one or more"),
        (("sentences=['[MASK]']", "top=0"), "top is 0; allowed: 1 or more"),
    ],
)
def test_a_wrong_sentence_is_one_message(
    model_dir: Path, capsys: pytest.CaptureFixture, words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as exited:
        run(model_dir, *words)
    assert exited.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert shown.err.count("error: ") == 1


def test_the_longest_sentence_that_fits_is_filled(model_dir: Path, capsys: pytest.CaptureFixture) -> None:
    run(model_dir, f"sentences=['{LONG[2:]}']", "top=1")
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("fault", ["tokenizer", "head", "weights", "mask"])
def test_a_folder_that_cannot_predict_is_refused(
    tmp_path: Path, model_dir: Path, capsys: pytest.CaptureFixture, fault: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_dir, folder)
    if fault == "tokenizer":
        for path in (*folder.glob("tokenizer*"), folder / "vocab.txt"):
            path.unlink()
    if fault == "head":
        BertModel.from_pretrained(model_dir).save_pretrained(folder)
    if fault == "weights":
        (folder / "model.safetensors").write_bytes(b"torn")
    if fault == "mask":
        BertTokenizerFast.from_pretrained(model_dir, mask_token=None).save_pretrained(folder)
    with pytest.raises(SystemExit) as exited:
        run(folder, "sentences=['a [MASK]']")
    assert exited.value.code == 2
    messages = {
        "tokenizer": "has no tokenizer (tokenizer.json or vocab.txt)",
        "head": "its predictions would be random; give a model with a masked-LM head",
        "weights": "does not load",
        "mask": "its tokenizer has no mask token",
    }
    assert messages[fault] in capsys.readouterr().err
