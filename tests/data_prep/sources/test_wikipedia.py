"""Dumps: articles without markup, multistream dumps in pieces, and errors for truncated files."""

import bz2
import re
from pathlib import Path

import pytest

from bert_pretrain.errors import ConfigError
from data_prep.engine.planning import plan_pieces
from data_prep.sources.cleaning import PLACEHOLDER, Dropped
from data_prep.sources.documents import Document, read_piece
from data_prep.sources.wikitext import text_rejected_as, wikitext_paragraphs
from tests.conftest import ROOT
from tests.data_prep.sources.test_documents import corpus

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


def test_markup_is_removed_and_words_are_kept() -> None:
    text = """{{Infobox person | name = A}}[[File:A.jpg|thumb|A '''picture''' of [[B]].]]
'''Ada''' ({{IPAc-en|a}}; born {{convert|3|km|mi}} away{{citation needed}}) was a [[mathematician|writer]]
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
        "Ada (born 3 kilometres away) was a writer of Lons. She went on.",
        "A first item.",
        "Second & last – item with a break.",
        "Text behind the list goes on here.",
        f"The area is {PLACEHOLDER} here. Bonjour all right",
        "He lived.",
        "Kept.",
    ]


@pytest.mark.parametrize("text", ["{{broken", "a ]] b", "| cell", "<div class=x>", "{| open"])
def test_unparsed_markup_is_found(text: str) -> None:
    assert text_rejected_as(text) == "markup_left_over"
    assert text_rejected_as("A {plain} sentence [of] 3 < 4 | words.") is None


def test_pointers_to_other_articles() -> None:
    assert text_rejected_as("See also: Software patents for a general overview.") == "pointer_to_another_article"
    assert text_rejected_as("Main articles such as these see also to the rest.") is None


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("It is [[wikt:plausible|plausible]] and [[wikt:ambi-|ambi]].", "It is plausible and ambi."),
        ("[[Alien: Covenant]] and [[Star Trek: Voyager|Voyager]].", "Alien: Covenant and Voyager."),
        ("Text.[[de:Wort]][[zh-yue:字]][[Category:A]][[File:b.jpg|c]]", "Text."),
        ("The [[:Category:Lists|lists]] of [[wikt:word]].", "The lists of word."),
        ("10<sup>24</sup> km<sup>2</sup>, 10<sup>−3</sup>, H<sub>2</sub>O.", "10²⁴ km², 10⁻³, H₂O."),
        ("The 1<sup>st</sup> of x<sup>n+1</sup>.", f"The 1st of x{PLACEHOLDER}."),
        ("15{{nbsp}}May{{mdashb}}{{HMS|Ajax|22|6}} in A{{music|flat}}.", "15 May — HMS Ajax in A-flat."),
        ("The {{Nihongo|[[bayonet]]|銃剣|jūken}} at {{Coord|13|N|169|W}}.", f"The bayonet at {PLACEHOLDER}."),
        ("{{Coord|13|N|169|W|display=title}}It {{nowrap|1=is ''so''}}.", "It is so."),
        ("Only {{cite web|title=b}} this.", "Only this."),
        ("It has {{unknown|a}} people.", f"It has {PLACEHOLDER} people."),
        ("It ended.{{mark}} A ''word''{{mark|b}} here ({{say|x}}; old) {{cn}}.", "It ended. A word here (old)."),
        ("{{Box|a}} It began. {{Quote box|b}}\n{{Image frame\n|a}} So.", "It began. So."),
        ("{{PAGENAME}} is a place. {{Name}} was not.", f"{PLACEHOLDER}is a place. {PLACEHOLDER}was not."),
        ("({{langx|de|Katze}}; {{langx|ru|кошка}}) of {{formatnum:12345}}.", "(Katze; кошка) of 12345."),
        ("Il pèse {{unité|12|kg}} et {{nombre|3}}.", "Il pèse 12 kg et 3."),
        ("{{num|14736}} человек.[[Файл:Foo.jpg|мини|Подпись]][[Категория:Города]]", "14736 человек."),
        (":{| class=x\n! a\n|-\n| b || c\n|}\nMore of it.", "More of it."),
        ("北京是-{zh-hans:中华; zh-hant:中華;}-的-{首都}-。-{T|zh:标题}-", "北京是中华的首都。"),
        ("{{lang|ar|الله}} is {{transl|ar|ALA|Allāh}} or {{transl|ar|ilāh}}.", "الله is Allāh or ilāh."),
        ("Two (e.g. {{cite web|b}}) ways (see [[A|table]] below) of it (See <ref>a</ref>).", "Two ways of it."),
        ("membre de l''''ACAE''' i ''més''.", "membre de l'ACAE i més."),  # apostrophes as MediaWiki reads them
        ("comprendente l'''uomo animale ragionevole''.", "comprendente l'uomo animale ragionevole."),
        ("the ''Titanic'''s and '''''all''''' of '''it'''.", "the Titanic's and all of it."),
        ("[[Αρχείο:A b.JPG|thumb|Ερμής]]Το [[2001: A Space Odyssey]].", "Το 2001: A Space Odyssey."),
        ("Wort ({{x|a}}, von {{y|b}}) und (seit 1,5 {{z}}; 3. Mai, {{q|c}}).", "Wort und (3. Mai)."),
        ("Wort (5 km{{x}}, 1,234).", "Wort (5 km, 1,234)."),
        ("von {{EnS|''animation''}}, {{langi|la|Lituae}}", "von animation, Lituae"),
        ("la {{1re}} du {{XXe siècle}}, le {{date|11|novembre|1866}}.", "la 1re du XXe siècle, le 11 novembre 1866."),
        ("Released: 2005, {{cite web|b}}. He asked, ... and went.", "Released: 2005. He asked, ... and went."),
    ],
)
def test_links_and_templates_in_a_sentence(wikitext: str, text: str) -> None:
    assert wikitext_paragraphs(wikitext) == [text]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("convert|2381741|km2|sqmi|0", "2,381,741 square kilometres"),
        ("convert|1|mi|km", "1 mile"),
        ("Convert|60|and(-)|80|kg|lb", "60 and 80 kilograms"),
        ("convert|25|by|36|by|4|cm|0|abbr=on", "25 by 36 by 4 centimetres"),
        ("convert|5|mi|km|adj=on", "5-mile"),
        ("convert|5|ft|8|in|cm", "5 feet 8 inches"),
        ("cvt|100|km|mi|0", "100 kilometres"),
        ("convert|44|e6acre|e6ha", "44 million acres"),
        ("convert|1.4|Moilbbl/d", "1.4 million barrels per day"),
        ("convert|340|m/s|ft/s", "340 metres per second"),
        ("convert|84|PD/sqmi|PD/km2", "84 inhabitants per square mile"),
        ("convert|-33|C-change|F", "-33 °C"),
        ("convert|1,500|sqft", "1,500 square feet"),
        ("convert|7|florin|", PLACEHOLDER),
        ("convert|many|km", PLACEHOLDER),
        ("convert|3", PLACEHOLDER),
    ],
)
def test_units_are_read_as_words(template: str, text: str) -> None:
    assert wikitext_paragraphs(f"It is {{{{{template}}}}} here.") == [f"It is {text} here."]


def test_pages_that_are_not_articles_are_counted(tmp_path: Path) -> None:
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
    """As in Wikipedia's dumps: the head, runs of pages and the end are separate bz2 streams."""
    runs = ["".join(PAGES[start : start + 5]) for start in range(0, 60, 5)]
    return b"".join(bz2.compress(part.encode()) for part in [HEAD, *runs, tail])


@pytest.mark.parametrize("piece_bytes", [100, 4000, 1 << 24])
def test_streams_are_divided_into_pieces(tmp_path: Path, piece_bytes: int) -> None:
    (tmp_path / "multi.xml.bz2").write_bytes(multistream())
    (tmp_path / "plain.xml.bz2").write_bytes(bz2.compress((HEAD + "".join(PAGES) + "</mediawiki>").encode()))
    documents, _, pieces = read_dump(tmp_path / "multi.xml.bz2", piece_bytes)
    assert [document.name for document in documents] == [f"Article {number}" for number in range(60)]
    assert (pieces > 1) == (piece_bytes < 1 << 20)
    assert documents == read_dump(tmp_path / "plain.xml.bz2")[0]


@pytest.mark.parametrize("piece_bytes", [100, 1 << 24])
def test_a_dump_cut_between_two_streams(tmp_path: Path, piece_bytes: int) -> None:
    """Every stream is whole, but the end of the dump is missing."""
    (tmp_path / "cut.xml.bz2").write_bytes(multistream()[: -len(bz2.compress(b"</mediawiki>"))])
    with pytest.raises(ConfigError, match="ends within <mediawiki>: the dump is truncated"):
        read_dump(tmp_path / "cut.xml.bz2", piece_bytes)


def test_half_a_surrogate_pair_as_an_entity() -> None:
    assert wikitext_paragraphs("Half &#xD800; and &#x1F600; whole.") == ["Half? and 😀 whole."]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bz2.compress((HEAD + "".join(PAGES)).encode())[:-40], "is truncated"),
        (bz2.compress((HEAD + "".join(PAGES)).encode()), "ends within <mediawiki>"),
        (bz2.compress((HEAD + "".join(PAGES)[:-30]).encode()), "ends within <page>"),
        (bz2.compress((HEAD + PAGES[0] + "</wrong>").encode()), "invalid XML at line 5"),
        (bz2.compress(b"no XML at all"), "invalid XML at line 1"),
        (bz2.compress((HEAD + page("A", "B\x01")).encode()), "invalid XML"),
        (multistream()[:-60], "is truncated|is damaged"),
        (b"no bz2", "is damaged or cannot be read near byte 0"),
    ],
)
def test_damaged_dumps(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.xml.bz2").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_dump(tmp_path / "a.xml.bz2")


@pytest.mark.parametrize("piece_bytes", [400, 1 << 24])
def test_namespaces_are_those_of_the_dump(tmp_path: Path, piece_bytes: int) -> None:
    head = HEAD.replace(
        "</siteinfo>",
        '<namespaces><namespace key="6" case="first-letter">Pilt</namespace><namespace '
        'key="14" case="first-letter">Kategooria</namespace></namespaces></siteinfo>',
    )
    text = "Üks lause.[[Pilt:A.jpg|pisi|Tekst]] [[Kategooria:B]][[Tallinn]] on linn.\n== Viited ==\nKaks."
    content = [bz2.compress(part.encode()) for part in (head, *[page(str(n), text) for n in range(9)], "</mediawiki>")]
    (tmp_path / "a.xml.bz2").write_bytes(b"".join(content))
    documents, _, pieces = read_dump(tmp_path / "a.xml.bz2", piece_bytes)
    assert (pieces > 3) == (piece_bytes == 400)
    assert {document.paragraphs[0] for document in documents} == {"Üks lause. Tallinn on linn."}


def test_redirects_and_disambiguation_in_other_languages(tmp_path: Path) -> None:
    pages = [
        page("A", "#WEITERLEITUNG [[B]]"),
        page("C", "#перенаправление [[Д]]"),
        page("E", "F: {{Begriffsklärung}}"),
    ]
    pages += [page("G", "#Erstens [[H]] ist\n# Zweitens mehr Text.")]
    pages += [page("I", "It is near [[Mercury]]{{Disambiguation needed|date=May 2024}}, they say. {{surname needed}}")]
    pages += [page("J", "K: {{ surname | L }}"), page("M", "N: {{disambiguation cleanup}}")]
    (tmp_path / "a.xml").write_text(HEAD + "".join(pages) + "</mediawiki>")
    documents, dropped, _ = read_dump(tmp_path / "a.xml")
    assert [document.name for document in documents] == ["G", "I"]
    assert dropped.counts == {"redirect": 2, "disambiguation_page": 3}


def test_joiners_are_part_of_words() -> None:
    """Persian, Sinhala: the cleaning decides about them, as for other corpora."""
    for text in ("او گفت که می\u200cخواهم به خانه\u200cام بروم.", "ශ්\u200dරී ලංකාව."):
        assert wikitext_paragraphs(text) == [text]


def test_a_real_dump() -> None:
    """No markup is left in any paragraph of 98 articles, and every article has text."""
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
