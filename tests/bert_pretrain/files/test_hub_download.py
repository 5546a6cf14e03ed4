"""Models and tokenizers by their name on the hub, from a server that speaks its protocol, and from its cache."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from bert_pretrain.data.masking_rule import SPECIAL_TOKENS
from bert_pretrain.data.row_source import local_tokenizer
from bert_pretrain.errors import ConfigError
from bert_pretrain.finetune.pretrained import find_model
from bert_pretrain.hub import fill_mask
from bert_pretrain.hub.source import find_source
from data_prep.samples.given_tokenizer import given_vocabulary
from tests.hub_server import TOKEN, HubServer

SHAPE = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 6}
MODEL = {
    "README.md": b"---\nlicense: mit\n---\n",
    "config.json": json.dumps({"model_type": "bert", **SHAPE}).encode(),
    "vocab.txt": "".join(f"{token}\n" for token in (*SPECIAL_TOKENS, "A")).encode(),
    "tokenizer_config.json": b'{"do_lower_case": false, "tokenizer_class": "BertTokenizer"}',
    "tf_model.h5": b"not wanted",
}
"""A model's files but for its weights."""
USES: dict[str, Callable[[str], object]] = {
    "init_from": lambda name: find_source(name, "init_from", print),
    "data.tokenizer": local_tokenizer,
    "vocab": lambda name: given_vocabulary(name, lowercase=True),
    "model_dir": find_model,
}
"""By option: what looks for its value."""
REFUSED: dict[str, Callable[[str], object]] = {**USES, "model_dir of fill-mask": fill_mask.load}


def gone(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the server closes each connection."""
    hub.faults["GET "] = hub.faults["HEAD "] = [0] * 1000


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_what_was_downloaded_once_needs_no_server(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    """Only the files that are of use are asked for, and in the second run none."""
    hub.add("model", "lab/bert", {**MODEL, weights: b"1"})
    source = find_source("lab/bert", "init_from", print)
    assert (source.folder / weights).read_bytes() == b"1"
    assert local_tokenizer("lab/bert") == find_model("lab/bert").folder == source.folder
    assert given_vocabulary("lab/bert", lowercase=True).tokens == [*SPECIAL_TOKENS, "A"]
    assert not [line for line in hub.requests if line.endswith(("tf_model.h5", "README.md"))]
    before = len(hub.requests)
    gone(hub, monkeypatch)
    for find in USES.values():
        find("lab/bert")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_source("lab/bert", "init_from", print) == source
    assert len(hub.requests) == before


def test_a_part_of_a_model_in_the_cache_is_completed(hub: HubServer) -> None:
    """The cache has the tokenizer only, which is enough for the shards; then the weights are wanted too."""
    hub.add("model", "lab/bert", {**MODEL, "model.safetensors": b"1"})
    local_tokenizer("lab/bert")
    assert not [line for line in hub.requests if line.endswith(".safetensors")]
    assert (find_source("lab/bert", "init_from", print).folder / "model.safetensors").is_file()


def test_a_folder_of_this_machine_goes_before_the_hub(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("model", "lab/bert", {**MODEL, "model.safetensors": b"1"})
    monkeypatch.chdir(tmp_path)
    Path("lab/bert").mkdir(parents=True)
    for name, content in {**MODEL, "model.safetensors": b"2"}.items():
        Path("lab/bert", name).write_bytes(content)
    assert find_source("lab/bert", "init_from", print).folder == Path("lab/bert")
    assert local_tokenizer("lab/bert") == find_model("lab/bert").folder == Path("lab/bert")
    assert given_vocabulary("lab/bert", lowercase=True).tokens[-1] == "A"
    assert not hub.requests


def offline(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def no_disk(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device", "/cache/x")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)


def status(number: int) -> Callable[[HubServer, pytest.MonkeyPatch], None]:
    def make(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.faults["GET /api/models/lab/bert"] = [number] * 100

    return make


def another_token(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong0123456789")


FAULTS: list[tuple[Callable[[HubServer, pytest.MonkeyPatch], None], str, str]] = [
    (gone, "lab/bert", "cannot be reached now"),
    (status(500), "lab/bert", r"cannot be reached now \(HTTP 500\); .*hf download lab/bert"),
    (status(404), "lab/bert", "has no such model"),
    (status(400), "lab/bert", r"refuses it \(HTTP 400\); see that HF_ENDPOINT is a hub"),
    (status(403), "lab/bert", r"refuses this user \(HTTP 403\)"),
    (another_token, "lab/bert", "has no such model, or it is hidden from this token|refuses this user"),
    (lambda *_: None, "lab/beet", "has no such model, or it is hidden from this token; correct the name"),
    (offline, "lab/bert", "not in the hub's cache, and HF_HUB_OFFLINE is set"),
    (no_disk, "lab/bert", r"the hub's cache cannot be written \(.*No space left.*set HF_HOME"),
    (lambda *_: None, "lab/bert--x", "no name on the hub either"),
]


@pytest.mark.parametrize("option", REFUSED)
@pytest.mark.parametrize(("make", "name", "message"), FAULTS, ids=[f"{name} {text[:25]}" for _, name, text in FAULTS])
def test_what_the_hub_refuses_is_told_in_one_line_of_one_form(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, option: str, make: Callable, name: str, message: str
) -> None:
    hub.add("model", "lab/bert", {**MODEL, "model.safetensors": b"1"})
    make(hub, monkeypatch)
    start = f"^{option.partition(' ')[0]} is '{name}', which is no file or folder here, and "
    with pytest.raises(ConfigError, match=f"{start}.*({message})") as refused:
        REFUSED[option](name)
    assert "\n" not in str(refused.value)
    assert TOKEN not in str(refused.value)


def test_a_model_on_the_hub_that_lacks_what_is_wanted(hub: HubServer) -> None:
    hub.add("model", "lab/bert", {"config.json": MODEL["config.json"], "tf_model.h5": b""})
    for option, message in (
        ("init_from", "a folder without weights"), ("data.tokenizer", "none of these files either"),
        ("vocab", "this has neither"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=f"^{option} is 'lab/bert'.*{message}"):
            USES[option]("lab/bert")
