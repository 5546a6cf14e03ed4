"""The cards: what they say of where the weights are from, and names that mean something in YAML or Markdown."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from bert_pretrain.hub.card import converted_card, model_card
from bert_pretrain.hub.card_parts import licence_entries
from bert_pretrain.hub.source import hub_base

FIXTURE = Path(__file__).resolve().parents[2] / "fixtures/run_56623bf/run"


def run_begun(run_dir: Path, init_from: str | None, base_model: str | None) -> Path:
    """A run of which the first session noted ``base_model``; its checkpoint."""
    shutil.copytree(FIXTURE, run_dir)
    session = {"event": "start", "time": 1.0, "step": 0, "host": "pc", "version": "abc1234", "ranks": 1,
               "device": "cpu", "compute": "bfloat16", "torch": "2.13.0"}  # fmt: skip
    rows = [{**session, "base_model": base_model}, {**session, "step": 5, "base_model": "looks/like-a-name"}]
    (run_dir / "sessions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    checkpoint = run_dir / "checkpoints/step_00000010"
    config = yaml.safe_load((checkpoint / "config.yaml").read_text())
    (checkpoint / "config.yaml").write_text(yaml.safe_dump({**config, "init_from": init_from}))
    return checkpoint


@pytest.mark.parametrize(
    ("init_from", "noted", "first_weights"),
    [
        ("google-bert/bert-base-uncased", "google-bert/bert-base-uncased", "google-bert/bert-base-uncased"),
        ("runs/phase1", None, "phase1"),
        ("/home/ada/runs/phase1", "google-bert/bert-base-uncased", "google-bert/bert-base-uncased"),
        (None, None, "random"),
    ],
)
def test_the_base_model_is_what_the_run_noted_when_it_began(
    tmp_path: Path, init_from: str | None, noted: str | None, first_weights: str
) -> None:
    text = model_card(run_begun(tmp_path / "run", init_from, noted), "ada/bert", None)
    assert ModelCard(text).data.base_model == noted
    assert f"| first weights | {first_weights} |" in text
    assert "/home" not in text
    assert "runs/" not in text


def test_a_run_notes_names_of_the_hub_and_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_base(None) is None
    assert hub_base("google-bert/bert-base-uncased") == "google-bert/bert-base-uncased"
    assert hub_base("bert-base-uncased") == "bert-base-uncased"
    assert hub_base("/nowhere/model") is None
    Path("google-bert/bert-base-uncased").mkdir(parents=True)  # a copy of this machine, whatever is in it
    assert hub_base("google-bert/bert-base-uncased") is None
    checkpoint = run_begun(Path("runs/phase1"), "lab/a-bert", "lab/a-bert")
    assert hub_base("runs/phase1") == "lab/a-bert"  # of a run that began from it
    assert hub_base(str(checkpoint)) == "lab/a-bert"
    run_begun(Path("runs/random"), None, None)
    assert hub_base("runs/random") is None


@pytest.mark.parametrize(
    "name",
    [
        "a|b", 'a"b', "a'b\\n", "a\nb: c\n---\nd", "- # {x}: [no]", "no", "{{ page }}", "名前 – ÄÖ 🤗", "*`a`*", " a",
        "a\tb", "%TAG", "&x", "!y",
    ],
)  # fmt: skip
def test_odd_names_are_read_back_as_they_are(tmp_path: Path, name: str) -> None:
    checkpoint = run_begun(tmp_path / "run", None, None)
    made = converted_card(name, name, name, "BertForMaskedLM", "{}", [f"note {name}"], [name])
    for text in (model_card(checkpoint, name, name), made):
        card = ModelCard(text)
        assert card.data.model_name == " ".join(name.split())
        assert card.data.pipeline_tag == "fill-mask"
        assert "\n## Environment\n" in card.text
        code = re.search(r"```python\n(.*?)\n```", text, re.DOTALL)
        assert code is not None
        compile(code[1], "usage", "exec")
        found: dict[str, object] = {}
        exec("def pipeline(task, model):\n    raise KeyError(model)", found)
        with pytest.raises(KeyError) as asked:
            exec(code[1].replace("from transformers import pipeline", ""), found)
        assert asked.value.args == (name,)
        for line in text.splitlines():
            if line.startswith("| "):
                assert len(re.findall(r"(?<!\\)\|", line)) in (3, 7)  # of two or six columns


def test_the_card_of_a_conversion_has_what_the_hub_wants() -> None:
    text = converted_card("my-bert", "Apache-2.0", "a.pt (NVIDIA)", "BertModel", '{"a": 1}', ["no head"], ["x.y"])
    card = ModelCard(text)
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == ("apache-2.0", "transformers", None)
    assert "Converted by bert-pretrain convert from a.pt (NVIDIA) to BertModel." in text
    assert "- `x.y`" in text
    assert "No head." in text
    assert 'BertModel.from_pretrained("my-bert")' in text


@pytest.mark.parametrize(
    ("stated", "licence", "name"),
    [
        ([""], "unknown", None),
        ([" "], "unknown", None),
        (["MIT", "mit "], "mit", None),
        (["???"], "other", "other"),
        (["CC0-1.0", "not stated by the source"], ["cc0-1.0", "unknown"], None),
    ],
)
def test_licences(stated: list[str], licence: object, name: str | None) -> None:
    assert licence_entries(stated) == {"license": licence, "license_name": name}
