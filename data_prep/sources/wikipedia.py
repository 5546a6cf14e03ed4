"""Wikipedia's ``pages-articles`` dumps: XML -> pages, of which those that are articles are kept.

The XML is read by expat as it comes, so a dump of any size takes the memory of one page. A run of streams from the
middle of a multistream dump has no root element; it is given one.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from bert_pretrain.errors import ConfigError

_FIELDS = {"title", "ns", "text"}
_DISAMBIGUATION = re.compile(r"\{\{\s*(?:disambig|disambiguation|hndis|geodis|surname|given name|dab)\b", re.IGNORECASE)


@dataclass
class Page:
    """One page of the dump. ``namespace`` 0 holds the articles."""

    title: str = ""
    namespace: str = ""
    text: str = ""
    is_redirect: bool = False


@dataclass
class _Reader:
    """expat's handlers; finished pages wait in ``pages``."""

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
            setattr(self.page, {"ns": "namespace"}.get(name, name), "".join(self.parts))
            self.parts = None
        elif name == "page":
            self.pages.append(self.page)
            self.page = None


def read_pages(parts: Iterable[bytes], path: Path, from_start: bool, to_end: bool) -> Iterator[Page]:
    """The pages in blocks of XML. ``ConfigError``, with line and byte, for what is no XML or ends too early."""
    reader = _Reader()
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = reader.start, reader.end
    parser.CharacterDataHandler = reader.data
    try:
        if not from_start:
            parser.Parse(b"<mediawiki>", False)
        for block in parts:
            parser.Parse(block, False)
            yield from reader.pages
            reader.pages.clear()
    except expat.ExpatError as error:
        if reader.depth == 0 and "junk after document element" in str(error) and not from_start:
            return
        raise ConfigError(
            f"corpus file {path}: no well-formed XML at line {error.lineno}, byte {parser.ErrorByteIndex} of what was "
            f"unpacked ({error}); get the dump anew"
        ) from None
    yield from reader.pages
    if reader.page is not None or (to_end and reader.depth > 0):
        raise ConfigError(
            f"corpus file {path}: the XML ends within <{'page' if reader.page else 'mediawiki'}>, at byte "
            f"{parser.CurrentByteIndex} of what was unpacked: the dump was cut off; get it anew"
        )


def why_no_article(page: Page) -> str | None:
    """The rule by which a page is no article, or None for an article."""
    if page.namespace not in ("0", ""):
        return "page_of_another_namespace"
    if page.is_redirect or page.text.lstrip()[:9].lower() == "#redirect":
        return "redirect"
    if _DISAMBIGUATION.search(page.text):
        return "disambiguation_page"
    return None
