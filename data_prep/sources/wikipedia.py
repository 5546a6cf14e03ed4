"""Wikipedia's ``pages-articles`` dumps: XML -> pages, and which of them are articles.

The XML is parsed as a stream, so only one page is in memory. A run of streams from the middle of a multistream dump
has no root element, so the parser is given one first.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from xml.etree.ElementTree import Element, ParseError, XMLPullParser

from bert_pretrain.errors import ConfigError
from bert_pretrain.files.addresses import Address
from data_prep.sources.wikitext_names import DISAMBIGUATION

_REDIRECT = re.compile(r"\s*#\s*[^\W\d_]+:?\s*\[\[[^\]]+\]\]\s*(?:\{\{.*)?$", re.DOTALL)  # the word in any language


@dataclass
class Page:
    """One page of the dump. Articles are in namespace 0."""

    title: str
    namespace: str
    text: str
    is_redirect: bool


def read_pages(blocks: Iterable[bytes], path: Path | Address, from_start: bool, to_end: bool) -> Iterator[Page]:
    """The pages in blocks of XML. ``ConfigError`` for XML that is invalid or truncated.

    ``from_start`` and ``to_end``: whether the blocks begin and end where the dump does.
    """
    parser: XMLPullParser = XMLPullParser(("start", "end"))
    open_elements: list[Element] = []
    try:
        parser.feed(b"" if from_start else b"<mediawiki>")
        for block in blocks:
            parser.feed(block)
            for event, element in cast("Iterator[tuple[str, Element]]", parser.read_events()):
                if event == "start":
                    open_elements.append(element)
                    continue
                open_elements.pop()
                if _name(element) == "page":
                    yield _page(element)
                    if open_elements:
                        open_elements[0].clear()  # drops the pages read so far
    except ParseError as error:
        if not open_elements and "junk after document element" in str(error) and not from_start:
            return
        line, column = error.position
        raise ConfigError(
            f"corpus file {path}: invalid XML at line {line}, column {column} of the decompressed data "
            f"({str(error).partition(':')[0]}); download the dump again"
        ) from None
    in_page = any(_name(element) == "page" for element in open_elements)
    if in_page or (to_end and open_elements):
        raise ConfigError(
            f"corpus file {path}: the XML ends within <{'page' if in_page else 'mediawiki'}>: the dump is truncated; "
            "download it again"
        )


def _name(element: Element) -> str:
    """The tag without its XML namespace."""
    return element.tag.rpartition("}")[2]


def _page(element: Element) -> Page:
    texts = [text.text or "" for text in element.findall(".//{*}text")]
    title, namespace = (element.findtext(name) or "" for name in ("{*}title", "{*}ns"))
    return Page(title, namespace, texts[-1] if texts else "", element.find("{*}redirect") is not None)


def page_rejected_as(page: Page) -> str | None:
    """The rule by which a page is not an article; None for an article."""
    if page.namespace not in ("0", ""):
        return "page_of_another_namespace"
    if page.is_redirect or page.text.lstrip()[:9].lower() == "#redirect" or _REDIRECT.match(page.text[:1000]):
        return "redirect"
    if DISAMBIGUATION.search(page.text):
        return "disambiguation_page"
    return None
