"""A user's own rule: what it may return, its errors, and that it is counted and fingerprinted as the others."""

import json
from pathlib import Path

import pytest

from bert_pretrain.errors import ConfigError
from data_prep import prepare
from data_prep.sources.cleaning import Dropped
from data_prep.sources.documents import Document
from data_prep.sources.user_rule import apply_rule, check_rule
from data_prep.text.text_parts import write_dropped
from tests.data_prep.test_prepare import Run, options, run, write_texts

__all__ = ["run"]  # a fixture

RULES = """
def clean(text):
    if "secret" in text:
        return None
    if len(text) < 10:
        return None, "too short"
    return text.replace("colour", "color")

def number(text):
    return 3

def fails(text):
    return text.missing

def ends(text):
    raise SystemExit(0)

def tells(text):
    raise ValueError("first line\\nsecond line")

def lines(text):
    class Lines:
        def __repr__(self):
            return "one\\ntwo"
    return Lines()

def judge(text):
    return None, text

def breaks(text):
    return "Half \\ud800."

value = 1
"""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.py"
    path.write_text(RULES)
    return path


def test_documents_are_changed_or_dropped(rules: Path) -> None:
    dropped = Dropped(texts=[])
    texts = ["A colour of the sea.\nAnd more.", "a secret thing", "short"]
    documents = [Document(str(number), "c", text.split("\n")) for number, text in enumerate(texts)]
    found = [apply_rule(document, f"{rules}:clean", dropped) for document in documents]
    assert found[0] == Document("0", "c", ["A color of the sea.", "And more."])
    assert found[1:] == [None, None]
    assert dropped.counts == {"own_rule": 1, "own_rule_too_short": 1}
    assert dropped.texts == [("own_rule", "a secret thing"), ("own_rule_too_short", "short")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", r"it takes a file and a function, as in rules\.py:clean"),
        ("missing", "has no function missing"),
        ("value", "has no function value"),
        ("number", r"returned 3 for document 7; it must return a text, None, or \(None, reason\)"),
        ("fails", r"failed on document 7: AttributeError: .*; mend the function"),
        ("ends", r"failed on document 7: SystemExit: 0; mend the function$"),
        ("tells", r"failed on document 7: ValueError: first line second line; mend the function$"),
        ("lines", r"returned one two for document 7; it must return"),
    ],
)
def test_bad_rules(rules: Path, name: str, message: str) -> None:
    def use() -> None:
        check_rule(f"{rules}:{name}")
        apply_rule(Document("7", "c", ["text"]), f"{rules}:{name}", Dropped())

    with pytest.raises(ConfigError, match=message):
        use()


def test_reasons_are_names_of_files(rules: Path, tmp_path: Path) -> None:
    reasons = ["../../up", "a/b", "", "..", "zu kurz: ä", "x" * 500, "half \ud800", "many\nlines"]
    dropped = Dropped(texts=[])
    for reason in [*reasons, *map(str, range(100))]:
        assert apply_rule(Document("1", "c", [reason]), f"{rules}:judge", dropped) is None
    kinds = ["up", "a_b", "zu_kurz_ä", "x" * 51, "half", "many_lines"]
    expected = ["own_rule", *(f"own_rule_{kind}" for kind in kinds)]
    assert list(dropped.counts)[:7] == [expected[1], expected[2], expected[0], *expected[3:]]
    assert (len(dropped.counts), dropped.counts.total()) == (50, 108)
    (tmp_path / "0.dropped.jsonl").write_text("".join(json.dumps(row) + "\n" for row in dropped.texts or []))
    for _ in range(2):  # as a preparation that goes on does
        write_dropped(tmp_path, tmp_path / "dropped")
    assert {path.stem for path in (tmp_path / "dropped").iterdir()} == set(dropped.counts)
    assert (tmp_path / "dropped/own_rule_half.txt").read_text() == "half ?\n\n"


def test_half_a_surrogate_pair_becomes_a_question_mark(rules: Path) -> None:
    found = apply_rule(Document("1", "c", ["text"]), f"{rules}:breaks", Dropped())
    assert found is not None
    assert found.paragraphs == ["Half ?."]


@pytest.mark.parametrize(
    ("rule", "message"),
    [("none.py:f", r"there is no file none\.py"), ("rules.txt:f", "it takes a file and a function")],
)
def test_rules_that_are_not_there(rule: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_rule(rule)


@pytest.mark.parametrize(
    ("content", "error"), [("import nothing_of_this_name", "ModuleNotFoundError"), ("exit()", "SystemExit"), ("(", "S")]
)
def test_a_file_that_cannot_be_loaded(tmp_path: Path, content: str, error: str) -> None:
    (tmp_path / "rules.py").write_text(content)
    with pytest.raises(ConfigError, match=rf"rules\.py:f cannot be loaded: {error}") as caught:
        check_rule(f"{tmp_path}/rules.py:f")
    assert "\n" not in str(caught.value)


def test_the_rule_is_part_of_a_preparation(tmp_path: Path, run: Run) -> None:
    texts, rule = write_texts(tmp_path / "texts"), tmp_path / "rules.py"
    rule.write_text("size = len\ndef f(text):\n    return None if size(text) % 4 == 0 else text\n")
    given = options(texts, tmp_path / "out", f"corpus.rule={rule}:f", "keep_dropped=true")
    assert "unigram entropy" in run(prepare, *given)
    documents = [text for file in texts.iterdir() for text in file.read_text().split("\n\n")]
    expected = sorted(text.strip() for text in documents if len(text.strip()) % 4 == 0)
    assert len(expected) > 5
    kept = (tmp_path / "out/corpus/dropped/own_rule.txt").read_text()
    assert sorted(kept.strip("\n").split("\n\n")) == expected
    assert "reused" in run(prepare, *given)
    rule.write_text("def f(text):\n    return text\n")
    assert "2: error: out_dir" in run(prepare, *given)
