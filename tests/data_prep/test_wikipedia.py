"""Dumps: articles without their markup; streams of a multistream dump are shared out; what is cut off is named."""

import bz2
import re
from pathlib import Path

import pytest

from bert_pretrain.errors import ConfigError
from data_prep.cleaning import HOLE, Dropped
from data_prep.documents import Document, read_piece
from data_prep.planning import plan_pieces
from data_prep.wikipedia import is_left_over, wikitext_paragraphs
from tests.conftest import ROOT
from tests.data_prep.test_documents import corpus

DUMP = ROOT.parent / "shared" / "data" / "wiki"
HEAD = '<mediawiki xml:lang="en"><siteinfo><sitename>Wikipedia</sitename></siteinfo>\n'


def page(title: str, text: str, namespace: int = 0, more: str = "") -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    return (
        f"<page><title>{title}</title><ns>{namespace}</ns><id>1</id>{more}<revision><id>2</id><text>{escaped}</text>"
        "</revision></page>\n"
    )


PAGES = [page(f"Article {number}", f"The text of article {number} is '''this'''.\n\nIt ends.") for number in range(60)]


def read_dump(path: Path, piece_bytes: int = 1 << 24) -> tuple[list[Document], Dropped, int]:
    dropped = Dropped()
    pieces = plan_pieces({"wiki": corpus(path, kind="wikipedia")}, piece_bytes)
    return [document for piece in pieces for document in read_piece(piece, dropped)], dropped, len(pieces)


def test_markup_goes_and_words_stay() -> None:
    text = """{{Infobox person | name = A}}[[File:A.jpg|thumb|A '''picture''' of [[B]].]]
'''Ada''' ({{IPA|a}}; born {{convert|3|km|mi}} away{{citation needed}}) was a [[mathematician|writer]]
of [[Lon]]s.<ref>No.</ref>
She went on.{{refn|Nor this.}}<!-- hidden -->

{| class="wikitable"
| cell || other
|}
* A [http://x.org first] item.
* Second &amp; last {{spaced ndash}} item<br/>with a break.
Text behind the list
goes on here.

The area is <math>x^2</math> here. {{lang|fr|Bonjour}} {{nowrap|all right}} [http://y.org]
== Life ==
He lived[[Category:Lives]].
=== Notes ===
Dropped.
==== Deeper ====
Dropped, too.
== Works ==
Kept.
== References ==
{{reflist}} Dropped.
"""
    assert wikitext_paragraphs(text) == [
        "Ada (born 3 km away) was a writer of Lons. She went on.",
        "A first item.",
        "Second & last – item with a break.",
        "Text behind the list goes on here.",
        f"The area is {HOLE} here. Bonjour all right",
        "He lived.",
        "Kept.",
    ]


@pytest.mark.parametrize("text", ["{{broken", "a ]] b", "| cell", "<div class=x>", "{| open"])
def test_what_the_parser_leaves_is_seen(text: str) -> None:
    assert is_left_over(text)
    assert not is_left_over("A {plain} sentence [of] 3 < 4 | words.")


def test_pages_that_are_no_articles_are_counted(tmp_path: Path) -> None:
    pages = [
        page("One", "An article."),
        page("Talk:One", "Talk.", 1),
        page("Old", "#REDIRECT [[One]]"),
        page("Older", "text", more='<redirect title="One" />'),
        page("Mercury", "May mean: {{disambiguation}}"),
        page("Two", "Another."),
    ]
    (tmp_path / "a.xml").write_text(HEAD + "".join(pages) + "</mediawiki>")
    documents, dropped, _ = read_dump(tmp_path / "a.xml")
    assert [(document.name, document.paragraphs) for document in documents] == [
        ("One", ["An article."]),
        ("Two", ["Another."]),
    ]
    assert dropped.counts == {"page_of_another_namespace": 1, "redirect": 2, "disambiguation_page": 1}


def multistream(tail: str = "</mediawiki>") -> bytes:
    """As Wikipedia writes them: the head, runs of pages, and the end, each a stream of its own."""
    runs = ["".join(PAGES[start : start + 5]) for start in range(0, 60, 5)]
    return b"".join(bz2.compress(part.encode()) for part in [HEAD, *runs, tail])


@pytest.mark.parametrize("piece_bytes", [100, 4000, 1 << 24])
def test_streams_are_shared_out(tmp_path: Path, piece_bytes: int) -> None:
    (tmp_path / "multi.xml.bz2").write_bytes(multistream())
    (tmp_path / "plain.xml.bz2").write_bytes(bz2.compress((HEAD + "".join(PAGES) + "</mediawiki>").encode()))
    documents, _, pieces = read_dump(tmp_path / "multi.xml.bz2", piece_bytes)
    assert [document.name for document in documents] == [f"Article {number}" for number in range(60)]
    assert (pieces > 1) == (piece_bytes < 1 << 20)
    assert documents == read_dump(tmp_path / "plain.xml.bz2")[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bz2.compress((HEAD + "".join(PAGES)).encode())[:-40], "was cut off"),
        (bz2.compress((HEAD + "".join(PAGES)).encode()), "ends within <mediawiki>"),
        (bz2.compress((HEAD + "".join(PAGES)[:-30]).encode()), "ends within <page>"),
        (bz2.compress((HEAD + PAGES[0] + "</wrong>").encode()), "no well-formed XML at line 5"),
        (bz2.compress(b"no XML at all"), "no well-formed XML at line 1"),
        (bz2.compress((HEAD + page("A", "B\x01")).encode()), "no well-formed XML"),
        (multistream()[:-60], "was cut off|is damaged"),
        (b"no bz2", "is damaged or cannot be read near byte 0"),
    ],
)
def test_damaged_dumps(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.xml.bz2").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_dump(tmp_path / "a.xml.bz2")


def test_a_real_dump() -> None:
    """No trace of markup in any paragraph of 97 articles, and no article without its text."""
    files = sorted(DUMP.glob("enwiki*.bz2")) if DUMP.is_dir() else []
    if not files:
        pytest.skip("the dump is not beside the repository (../shared/data/wiki)")
    documents, dropped, _ = read_dump(files[0])
    assert (len(documents), dropped.counts["redirect"]) == (98, 99)
    text = "\n".join(paragraph for document in documents for paragraph in document.paragraphs)
    assert len(text) > 2_000_000
    traces = re.findall(r"\[\[|\]\]|\{\{|\}\}|<ref|'''|&nbsp;|\bthumb\||Category:|File:|__[A-Z]+__", text)
    assert traces == []
    assert dropped.counts["markup_left_over"] < 20
    anarchism = next(document for document in documents if document.name == "Anarchism")
    assert anarchism.paragraphs[0].startswith("Anarchism is a political philosophy that advocates")
