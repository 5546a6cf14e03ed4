"""``export push_to`` and ``push-shards`` against a server that speaks the hub's protocol."""

import hashlib
import json
import re
import shutil
import socket
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard

from bert_pretrain.data.shard_cache import CacheConfig
from bert_pretrain.data.shard_directory import shard_folder, shard_paths
from bert_pretrain.data.shards import ShardReader
from bert_pretrain.hub import export, push_shards
from bert_pretrain.hub.card import model_card
from tests.conftest import make_shards
from tests.hub_server import TOKEN, HubServer

FIXTURE = Path(__file__).resolve().parents[2] / "fixtures/run_56623bf"


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that were checked, without loading the model, which other tests do."""
    folders: list[Path] = []
    monkeypatch.setattr(export, "check_loads", folders.append)
    return folders


def status(command: object, *words: str) -> int:
    try:
        command(list(words))  # type: ignore[operator]
    except SystemExit as exited:
        return int(str(exited.code))
    return 0


def exported(out_dir: Path, *words: str, run: Path = FIXTURE / "run") -> int:
    return status(export.main, f"run_dir={run}", f"out_dir={out_dir}", *words)


def metadata(readme: bytes) -> dict:
    """The metadata of a card, by a reader of YAML."""
    return yaml.safe_load(readme.decode().split("---\n")[1])


def test_an_export_is_pushed_with_its_checkpoints_as_branches(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(FIXTURE / "run", tmp_path / "run")
    words = ("push_to=bert", "push_checkpoints=true", "licence=apache-2.0")
    assert exported(tmp_path / "model", *words, run=tmp_path / "run") == 0
    repo = hub.repos["model", "ada/bert"]
    assert repo["private"] is True
    assert set(repo["branches"]) == {"main", "step_10"}
    files = hub.files("model", "ada/bert")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md"):
        assert files[name] == (tmp_path / "model" / name).read_bytes()
    assert b'model="ada/bert", revision="step_10"' in hub.files("model", "ada/bert", "step_10")["README.md"]
    assert not any(str(tmp_path).encode() in content or b"tests/" in content for content in files.values())
    shown = capsys.readouterr().out
    assert f"pushed 7 files to {hub.address}/ada/bert (private)" in shown
    assert f"{hub.address}/ada/bert/tree/step_10 (private)" in shown
    assert {path.name for path in tmp_path.iterdir()} == {"run", "model"}
    before = len(hub.requests)
    assert exported(tmp_path / "model", *words, run=tmp_path / "run") == 0  # nothing is new
    again = hub.requests[before:]
    assert not [line for line in again if line.startswith("PUT") or "/commit/" in line]
    assert "was exported already" in capsys.readouterr().out


def test_the_card_of_a_model_is_read_by_the_hubs_library(unloaded: list[Path], tmp_path: Path) -> None:
    """Against the numbers in ``metrics.jsonl``, ``config.yaml`` and the manifest of the fixture."""
    assert exported(tmp_path / "mine", "licence=MIT") == 0
    text = (tmp_path / "mine/README.md").read_text()
    card = ModelCard(text)
    assert card.data.license == "mit"
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "fill-mask"
    last = json.loads((FIXTURE / "run/metrics.jsonl").read_text().splitlines()[-1])
    found = {(result.task_type, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert found[("fill-mask", "loss")] == pytest.approx(last["eval_mlm_loss"], abs=1e-6)
    assert found[("fill-mask", "perplexity")] == pytest.approx(2.718281828459045 ** last["eval_mlm_loss"], rel=1e-5)
    assert found[("fill-mask", "accuracy")] == pytest.approx(last["eval_mlm_accuracy"], abs=1e-6)
    assert found[("next-sentence-prediction", "accuracy")] == pytest.approx(last["eval_nsp_accuracy"], abs=1e-6)
    assert "model-index" in metadata(text.encode())
    assert "| corpus.txt | text: corpus.txt, 89096 bytes |" in text
    assert "| steps | 10 of 20 |" in text
    assert "| global batch | 64 samples of up to 32 tokens |" in text
    assert "| algorithm | nvlamb |" in text
    usage = re.search(r"```python\n(.*?)\n```", text, re.DOTALL)
    assert usage is not None
    assert len(usage[1].splitlines()) == 3
    compile(usage[1], "usage", "exec")
    assert "tests/" not in text
    assert str(Path.home()) not in text


def test_the_card_tells_data_and_device_as_the_run_recorded_them(tmp_path: Path) -> None:
    shutil.copytree(FIXTURE / "run", tmp_path / "run")
    checkpoint = tmp_path / "run/checkpoints/step_00000010"
    session = {"event": "start", "time": 1.0, "step": 0, "host": "adas-pc", "version": "abc1234", "ranks": 2,
               "device": "NVIDIA H200", "compute": "bfloat16", "torch": "2.13.0"}  # fmt: skip
    (tmp_path / "run/sessions.jsonl").write_text(json.dumps(session) + "\n")
    config = (checkpoint / "config.yaml").read_text()
    local = str(prepared(tmp_path / "set"))
    for place, ids in ((local, ["wikimedia/wikipedia"]), ("hf://datasets/lab/set", ["lab/set"])):
        (checkpoint / "config.yaml").write_text(re.sub(r"(?m)^  dir: .*$", f"  dir: {place}", config))
        text = model_card(checkpoint, "ada/bert", "my own licence")
        card = ModelCard(text)
        assert card.data.datasets == ids
        assert (card.data.license, card.data.license_name) == ("other", "my-own-licence")
        assert "| device | 2 x NVIDIA H200, bfloat16 |" in text
        assert "| trained by | bert-pretrain, abc1234 |" in text
        for private in (str(tmp_path), "/home", "secret", "adas-pc"):
            assert private not in text
        if ids == ["wikimedia/wikipedia"]:
            assert card.data.language == ["en", "de"]
            assert "| books | text: 3 files, 9 bytes | en | CC0-1.0 | 3 | 1,000 |" in text
        else:
            assert "(https://huggingface.co/datasets/lab/set)" in text


def prepared(folder: Path) -> Path:
    """Shards with a manifest as prepare writes it, of a corpus with a path, and of one of the hub."""
    make_shards(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    counts = {"documents": 3, "characters": 1000}
    corpora = {
        "corpus": {"kind": "text", "path": "/home/ada/secret/books", "rule": "/home/ada/rules.py:keep"},
        "mix": {"wiki": {"kind": "dataset", "path": "wikimedia/wikipedia", "rule": None}},
    }
    manifest |= {
        "sequence_length": 16, "max_predictions": 3, "tokenizer": {"vocab_size": 97},
        "sources": [
            {"corpus": "corpus", "name": "/home/ada/secret/books", "version": "text: 3 files, 9 bytes",
             "licence": "CC0-1.0", "language": "en", **counts},
            {"corpus": "wiki", "name": "wikimedia/wikipedia", "version": "20231101.de, train",
             "licence": "CC-BY-SA-4.0", "language": "de", **counts},
        ],
        "stages": [
            {"stage": "text", "documents": 6, "dropped_samples": {"rule": ["Dear Ada"]}, "notes": ["/home/ada"]},
            {"stage": "token ids", "examples": {"unknown": {"adagram": 1}}, "pieces": {"words": 9}},
            {"stage": "samples", "16": {"train": {"samples": 100, "real_tokens": 1200}}},
        ],
        "options": {**corpora, "vocab": "/home/ada/vocab.txt", "seed": 5, "sample_kind": "pair"},
        "appended": [corpora],
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/vocab.txt").write_text("[PAD]\n")
    (folder / "corpus").mkdir()
    (folder / "corpus/text.txt").write_text("private text")
    return folder


def test_shards_are_pushed_and_read_again_by_their_address(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = prepared(tmp_path / "set")
    assert status(push_shards.main, f"dir={folder}", "push_to=lab/set", "private=false") == 0
    assert "data.dir=hf://datasets/lab/set" in capsys.readouterr().out
    assert hub.repos["dataset", "lab/set"]["private"] is False
    files = hub.files("dataset", "lab/set")
    assert {name for name in files if not name.startswith(("train_", "heldout_"))} == {
        ".gitattributes", "README.md", "manifest.json", "tokenizer/vocab.txt",
    }  # fmt: skip
    for private in (b"/home", b"secret", b"Dear Ada", b"adagram", b"private text"):
        assert not [name for name, content in files.items() if private in content]
    card = DatasetCard(files["README.md"].decode())
    assert card.data.license == ["cc0-1.0", "cc-by-sa-4.0"]
    assert card.data.language == ["en", "de"]
    assert card.data.source_datasets == ["wikimedia/wikipedia"]
    assert card.data.size_categories == "n<1K"
    public = json.loads(files["manifest.json"])
    assert public["options"]["corpus"]["path"] == "books"
    assert public["stages"][2]["16"]["train"]["real_tokens"] == 1200  # a mixture reads it

    local = shard_folder("hf://datasets/lab/set", CacheConfig(str(tmp_path / "cache"), 1.0))
    for split in ("train", "heldout"):
        names = [path.name for path in shard_paths(local, split)]
        assert names == [path.name for path in shard_paths(folder, split)]
    name = shard_paths(folder, "train")[0].name
    assert files[name] == (folder / name).read_bytes()
    reader = ShardReader(local / name)
    assert reader.samples == 50
    reader.close()


def test_a_smaller_set_replaces_the_shards_of_a_larger_one(hub: HubServer, tmp_path: Path) -> None:
    folder = prepared(tmp_path / "set")
    assert status(push_shards.main, f"dir={folder}", "push_to=ada/set") == 0
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"] = [row for row in manifest["shards"] if row["name"] != "train_00002.hdf5"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert status(push_shards.main, f"dir={folder}", "push_to=ada/set") == 0
    names = hub.files("dataset", "ada/set")
    assert "train_00001.hdf5" in names
    assert "train_00002.hdf5" not in names


def test_a_failed_upload_goes_on_with_the_same_command(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The second of four large files fails for good: what came before is not sent again."""
    folder = prepared(tmp_path / "set")
    names = [path.name for split in ("train", "heldout") for path in shard_paths(folder, split)]
    failing = hashlib.sha256((folder / names[1]).read_bytes()).hexdigest()
    hub.faults[f"PUT /large/{failing}"] = [500] * 100
    assert status(push_shards.main, f"dir={folder}", "push_to=ada/set") == 74
    shown = capsys.readouterr().err
    assert [line for line in shown.splitlines() if line.startswith("error: ")] == [shown.splitlines()[-1]]
    assert "HTTP 500" in shown
    assert "run the same command again" in shown
    assert TOKEN not in shown
    assert "train_00000.hdf5" not in hub.files("dataset", "ada/set")  # a set is there whole or not at all
    sent = [line for line in hub.requests if line.startswith("PUT")]
    assert sent
    hub.faults.clear()
    assert status(push_shards.main, f"dir={folder}", "push_to=ada/set") == 0
    assert len([line for line in hub.requests if line.startswith("PUT")]) == len(names)
    assert set(names) <= set(hub.files("dataset", "ada/set"))


def test_an_export_is_kept_when_its_push_fails(
    hub: HubServer, unloaded: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    hub.faults["POST /api/models/ada/bert/commit"] = [503] * 100
    assert exported(tmp_path / "model", "push_to=ada/bert") == 74
    assert "HTTP 503" in capsys.readouterr().err
    hub.faults.clear()
    assert exported(tmp_path / "model", "push_to=ada/bert") == 0
    assert "was exported already" in capsys.readouterr().out
    assert len(unloaded) == 2  # checked again before the push
    assert len([line for line in hub.requests if line.startswith("PUT")]) == 1
    assert "model.safetensors" in hub.files("model", "ada/bert")


def test_a_card_that_was_changed_is_pushed_as_it_is(
    hub: HubServer, unloaded: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert exported(tmp_path / "model") == 0
    assert exported(tmp_path / "model", "push_to=ada/bert", "licence=mit") == 0
    card = hub.files("model", "ada/bert")["README.md"]  # ours is renewed: its name there, and the licence
    assert b'model="ada/bert"' in card
    assert metadata(card)["license"] == "mit"
    (tmp_path / "model/README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    assert exported(tmp_path / "model", "push_to=ada/bert", "licence=mit") == 0
    assert hub.files("model", "ada/bert")["README.md"] == b"---\nlicense: mit\n---\nMine.\n"
    assert "was changed, and is pushed as it is" in capsys.readouterr().out


def test_nothing_is_pushed_of_an_export_that_does_not_load(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(folder: Path) -> None:
        raise export.ConfigError("does not load")

    monkeypatch.setattr(export, "check_loads", broken)
    assert exported(tmp_path / "model", "push_to=ada/bert") == 2
    assert not hub.repos
    folder = prepared(tmp_path / "set")
    with open(folder / "train_00001.hdf5", "r+b") as file:
        file.seek(-20, 2)
        file.write(b"damaged")
    assert status(push_shards.main, f"dir={folder}", "push_to=ada/set") == 2
    assert not hub.repos


def test_mistakes_are_told_in_one_line_before_the_export(
    hub: HubServer, unloaded: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(*words: str) -> str:
        assert exported(tmp_path / "model", *words) == 2
        shown = capsys.readouterr().err
        assert shown.startswith("error: ")
        assert shown.count("\n") == 1
        assert TOKEN not in shown
        assert not (tmp_path / "model").exists()
        return shown

    assert "no OWNER/NAME" in told("push_to=a/b/c")
    assert "no OWNER/NAME" in told("push_to='ada/b\nc'")
    hub.faults["GET /api/whoami-v2"] = [404]
    assert "refuses it (Client error '404 Not Found'" in told("push_to=ada/bert")
    assert "push_checkpoints" in told("push_checkpoints=true")
    assert "may write to: ada, lab" in told("push_to=bob/bert")
    hub.role = "read"
    assert "may only read" in told("push_to=ada/bert")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "does not accept the token" in told("push_to=ada/bert")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "set HF_TOKEN" in told("push_to=ada/bert")


def test_a_name_that_holds_something_else_is_refused(
    hub: HubServer, unloaded: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    hub.add("dataset", "ada/words")
    hub.add("model", "ada/voice", {"weights.bin": b"1"})
    for repo, message in (("ada/words", "another kind than model"), ("ada/voice", "holds other files (weights.bin)")):
        assert exported(tmp_path / "model", f"push_to={repo}") == 2
        shown = capsys.readouterr().err
        assert message in shown
        assert shown.count("\n") == 1
    hub.faults["POST /api/repos/create"] = [403]
    assert exported(tmp_path / "model", "push_to=lab/bert") == 2
    assert "may not write there" in capsys.readouterr().err
    assert hub.files("model", "ada/voice") == {"weights.bin": b"1"}


def test_a_server_that_is_gone_is_an_outage(
    hub: HubServer, unloaded: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.faults["GET /api/whoami-v2"] = [0]  # once: asked again
    assert exported(tmp_path / "model", "push_to=ada/bert") == 0
    assert "can be reached again" in capsys.readouterr().err
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    assert exported(tmp_path / "model", "push_to=ada/bert") == 74
    assert "cannot be reached" in capsys.readouterr().err.splitlines()[-1]
