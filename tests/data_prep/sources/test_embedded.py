"""The embedded corpus: string literals are found as by Python's parser, and prose is separated from code."""

import ast
import email
import inspect
import statistics
import textwrap
from pathlib import Path

import pytest

from data_prep.sources import embedded
from data_prep.sources.embedded import looks_like_prose, prose_paragraphs, triple_quoted


@pytest.mark.parametrize("module", [textwrap, inspect, statistics, ast])
def test_every_docstring_is_found(module: object) -> None:
    """Compared with Python's own parser."""
    source = inspect.getsource(module)  # type: ignore[arg-type]
    found = set(triple_quoted(source))
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    wanted = {ast.get_docstring(node, clean=False) for node in ast.walk(ast.parse(source)) if isinstance(node, nodes)}
    constants = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    missing = {text for text in wanted if text and len(text) >= 30 and text not in found}
    assert all(f'"{text}"' in source and f'"""{text}"""' not in source for text in missing)  # one-line strings
    assert found <= constants


def test_quotes_in_comments_and_strings_start_no_string() -> None:
    long = "A text of more than thirty characters."
    source = (
        f"# it's a \"\"\" comment\nx = 'a \"\"\" b'\ny = \"\"\"{long}\"\"\"\nb'''{long} bytes'''\nf'''{long} {{x}}'''\n"
        f"z = r'''{long}\\d'''\nw = '''{long}\\n'''\n"
    )
    assert triple_quoted(source) == [long, long + "\\d", long + "\n"]


def test_prose_is_cleaned() -> None:
    text = """Return the ``shape`` of a :class:`~numpy.ndarray`, as [a tuple](http://x.y) of *ints*.

    Parameters
    ----------
    axis : int
        The axis along which the elements are counted. It may
        be negative.
    keep (`bool`, *optional*, defaults to `False`):
        Whether the axis is kept in the result.
    :param other: the other array that is to be counted.

    >>> shape([1, 2])
    (2,)

    For example, the following code prints the shape of an array::

        This is Code in a block that looks like a sentence.

    .. note:: Something hidden.

    * A first item of a list, with some words.
    * A second item of a list, with some words.

    | a table | with cells |

    ```python
    This is Code in a fence that looks like a sentence.
    ```
    See https://example.org for the rest of the story.
    x = f(y) + g(z); return {a: b} for all of these.
    """
    assert prose_paragraphs(text) == [
        "Return the shape of a numpy.ndarray, as a tuple of ints.",
        "The axis along which the elements are counted. It may be negative.",
        "Whether the axis is kept in the result.",
        "The other array that is to be counted.",
        "A first item of a list, with some words.",
        "A second item of a list, with some words.",
    ]


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("The default value is used if nothing is given.", True),
        ("lowercase at the start is not a sentence of prose.", False),
        ("Too short.", False),
        ("", False),
        ("Foo_bar = baz[1] + {x: y} <- qux(z) | w @ v.", False),
        ("See http://a.b for more of this and of that.", False),
        ("A B C 1 2 3 4 5 6 7 8 9 10 11 12.", False),
    ],
)
def test_looks_like_prose(text: str, good: bool) -> None:
    assert looks_like_prose(text) is good


def test_the_standard_library_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = Path(email.__file__).parent
    paragraphs = [text for path in sorted(root.glob("*.py")) for text in embedded.module_paragraphs(path)]
    assert len(paragraphs) > 150
    assert embedded.module_paragraphs(tmp_path / "none.py") == []
    monkeypatch.setattr(embedded, "PACKAGES", ())
    files = list(embedded.source_files())
    assert {source for _, _, source in files} == {"python"}
    assert (root / "header.py", "python:email/header.py", "python") in files
    version, licence = embedded.embedded_sources()["python"]
    assert version.startswith("Python 3")
    assert licence == "PSF-2.0"


def test_python_s_documentation_is_included() -> None:
    topics = Path(inspect.getfile(__import__("pydoc_data.topics").topics))
    text = " ".join(embedded.module_paragraphs(topics))
    assert len(text) > 100_000
    assert "statement" in text
