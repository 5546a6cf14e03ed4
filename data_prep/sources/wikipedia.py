"""Wikipedia's ``pages-articles`` dumps: XML -> pages, and which of them are articles.

expat parses the XML as a stream, so only one page is in memory. A run of streams from the middle of a multistream
dump has no root element, so the parser is given one first.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from bert_pretrain.errors import ConfigError

_FIELDS = {"title": "title", "ns": "namespace", "text": "text"}
_DISAMBIGUATION = re.compile(r"\{\{\s*(?:disambig|disambiguation|hndis|geodis|surname|given name|dab)\b", re.IGNORECASE)


@dataclass
class Page:
    """One page of the dump. Articles are in namespace 0."""

    title: str = ""
    namespace: str = ""
    text: str = ""
    is_redirect: bool = False


@dataclass
class _Handlers:
    """expat's handlers. Finished pages are collected in ``pages``."""

    pages: list[Page] = field(default_factory=list)
    page: Page | None = None
    parts: list[str] | None = None
    depth: int = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self.depth += 1
        if name == "page":
            self.page = Page()
        elif self.page is not None and name == "redirect":
            self.page.is_redirect = True
        elif self.page is not None and name in _FIELDS:
            self.parts = []

    def data(self, text: str) -> None:
        if self.parts is not None:
            self.parts.append(text)

    def end(self, name: str) -> None:
        self.depth -= 1
        if self.page is None:
            return
        if name in _FIELDS and self.parts is not None:
            setattr(self.page, _FIELDS[name], "".join(self.parts))
            self.parts = None
        elif name == "page":
            self.pages.append(self.page)
            self.page = None


def read_pages(blocks: Iterable[bytes], path: Path, from_start: bool, to_end: bool) -> Iterator[Page]:
    """The pages in blocks of XML. ``ConfigError`` names line and byte of XML that is invalid or truncated.

    ``from_start`` and ``to_end``: whether the blocks begin and end where the dump does.
    """
    handlers = _Handlers()
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = handlers.start, handlers.end
    parser.CharacterDataHandler = handlers.data
    try:
        if not from_start:
            parser.Parse(b"<mediawiki>", False)
        for block in blocks:
            parser.Parse(block, False)
            yield from handlers.pages
            handlers.pages.clear()
    except expat.ExpatError as error:
        if handlers.depth == 0 and "junk after document element" in str(error) and not from_start:
            return
        raise ConfigError(
            f"corpus file {path}: invalid XML at line {error.lineno}, byte {parser.ErrorByteIndex} of the decompressed "
            f"data ({error}); download the dump again"
        ) from None
    yield from handlers.pages
    if handlers.page is not None or (to_end and handlers.depth > 0):
        raise ConfigError(
            f"corpus file {path}: the XML ends within <{'page' if handlers.page else 'mediawiki'}>, at byte "
            f"{parser.CurrentByteIndex} of the decompressed data: the dump is truncated; download it again"
        )


def page_rejected_as(page: Page) -> str | None:
    """The rule by which a page is not an article; None for an article."""
    if page.namespace not in ("0", ""):
        return "page_of_another_namespace"
    if page.is_redirect or page.text.lstrip()[:9].lower() == "#redirect":
        return "redirect"
    if _DISAMBIGUATION.search(page.text):
        return "disambiguation_page"
    return None
