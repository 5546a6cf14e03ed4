"""Wikipedia's ``pages-articles`` dumps: XML -> pages -> wikitext -> paragraphs of prose.

The XML is read by expat as it comes, so a dump of any size takes the memory of one page. A run of streams from the
middle of a multistream dump has no root element; it is given one. Wikitext is parsed by ``mwparserfromhell``.
Formulas and scores leave ``HOLE`` where they stood: a sentence with a hole in it is no prose and is dropped later.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

import mwparserfromhell
from mwparserfromhell import nodes
from mwparserfromhell.wikicode import Wikicode

from bert_pretrain.errors import ConfigError
from data_prep.cleaning import HOLE

_ITEM = "\x01"  # stands before the text of a list item
_FIELDS = {"title", "ns", "text"}
_DROPPED_SECTIONS = {
    "references", "external links", "see also", "notes", "further reading", "bibliography", "sources", "footnotes",
    "citations", "notes and references", "references and notes", "gallery", "works cited", "selected bibliography",
    "discography", "filmography", "external resources", "general references", "literature", "publications",
}  # fmt: skip
_DROPPED_TAGS = {
    "ref", "references", "table", "gallery", "timeline", "imagemap", "code", "syntaxhighlight", "source", "pre", "tr",
    "td", "th", "caption", "templatestyles", "graph", "mapframe", "maplink", "hiero", "categorytree",
    "inputbox", "section",
}  # fmt: skip
_HOLE_TAGS = {"math", "score", "chem", "ce"}
_BREAKING_TAGS = {"p", "div", "blockquote", "ul", "ol", "dl", "hr", "center", "poem"}
_FIRST_ARGUMENT = {
    "nowrap", "nobr", "small", "abbr", "sic", "em", "strong", "smallcaps", "sc", "var", "linktext", "transl", "pron",
    "ill", "interlanguage link", "visible anchor", "vanchor", "quote", "blockquote", "cquote", "gloss", "avoid wrap",
}  # fmt: skip
_DASHES = {"ndash": "–", "mdash": "—", "spaced ndash": " – ", "snd": " – ", "spnd": " – ", "endash": "–", "emdash": "—"}
_HOLE_TEMPLATES = {"math", "mvar", "frac", "sfrac", "chem", "chem2", "val", "su", "sub", "sup", "tex", "nuclide"}
_NOT_TEXT_LINK = re.compile(r"^\s*:?(?:file|image|category|media|[a-z-]{2,12}):", re.IGNORECASE)
_DISAMBIGUATION = re.compile(r"\{\{\s*(?:disambig|disambiguation|hndis|geodis|surname|given name|dab)\b", re.IGNORECASE)

_TIDY = (
    (re.compile(r"'{2,}"), ""),  # bold and italic
    (re.compile(r"__[A-Z]+__"), ""),
    (re.compile(r"[\u00ad\u200b-\u200f\u2060\ufeff]"), ""),
    (re.compile(r"([(\[])[\s,;:–—]+"), r"\1"),  # "(; 3 June" where a template stood
    (re.compile(r"[\s,;:–—]+([)\]])"), r"\1"),
    (re.compile(r"\(\s*(?:or|and|pronounced|also|born|listen)?\s*\)|\[\s*\]"), ""),
    (re.compile(r"[ \t\u00a0]+"), " "),
    (re.compile(r" +([,.;:!?)])(?=\s|$)"), r"\1"),
    (re.compile(r"([,;:])(?:\s*[,;:])+"), r"\1"),
)
_LEFT_OVER = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}|<[a-z/!]|^\s*[|!]", re.IGNORECASE)


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


def wikitext_paragraphs(text: str) -> list[str]:
    """The paragraphs of an article, list items too, without markup; sections of references and links are left out."""
    wikicode = mwparserfromhell.parse(text, skip_style_tags=True)
    pieces: list[str] = []
    skipped_level = 0  # within a dropped section: its level
    for node in wikicode.nodes:
        if isinstance(node, nodes.Heading):
            title = str(node.title).strip().strip("'").lower()
            if skipped_level == 0 or node.level <= skipped_level:
                skipped_level = node.level if title in _DROPPED_SECTIONS else 0
            pieces.append("\n\n")
        elif skipped_level == 0:
            pieces.append(_node_text(node))
    return [paragraph for text in _joined_lines("".join(pieces)) if (paragraph := _tidied(text))]


def _joined_lines(text: str) -> Iterator[str]:
    """Paragraphs as MediaWiki makes them: lines up to an empty one; a list item is its line alone."""
    waiting: list[str] = []
    for line in text.split("\n"):
        is_item = line.startswith(_ITEM)
        if waiting and (is_item or not line.strip()):
            yield " ".join(waiting)
            waiting = []
        if is_item:
            yield line.lstrip(_ITEM)
        elif line.strip():
            waiting.append(line.strip())
    if waiting:
        yield " ".join(waiting)


def is_left_over(paragraph: str) -> bool:
    """Whether markup that the parser could not make out is left in a paragraph."""
    return _LEFT_OVER.search(paragraph) is not None


def _tidied(text: str) -> str:
    for pattern, replacement in _TIDY:
        text = pattern.sub(replacement, text)
    return text.strip()


def _code_text(code: Wikicode | None) -> str:
    return "".join(map(_node_text, code.nodes)) if code is not None else ""


def _node_text(node: nodes.Node) -> str:
    if isinstance(node, nodes.Text):
        return str(node.value)
    if isinstance(node, nodes.HTMLEntity):
        return str(node.normalize())
    if isinstance(node, nodes.Wikilink):
        if _NOT_TEXT_LINK.match(str(node.title)):
            return ""
        return _code_text(node.text) if node.text is not None else _code_text(node.title).partition("#")[0]
    if isinstance(node, nodes.ExternalLink):
        return _code_text(node.title)
    if isinstance(node, nodes.Tag):
        return _tag_text(node)
    if isinstance(node, nodes.Template):
        return _template_text(node)
    return ""  # comments, arguments, headings within templates


def _tag_text(node: nodes.Tag) -> str:
    name = str(node.tag).strip().lower()
    if name in _HOLE_TAGS:
        return HOLE
    if name in _DROPPED_TAGS:
        return ""
    text = _code_text(node.contents)
    if name in ("li", "dd", "dt"):
        return f"\n{_ITEM}{text}"
    if name == "br":
        return " "
    return f"\n\n{text}\n\n" if name in _BREAKING_TAGS else text


def _template_text(node: nodes.Template) -> str:
    """Most templates are boxes, notes and citations; a few stand for words of the sentence."""
    name = str(node.name).strip().lower().replace("_", " ")
    arguments = [_code_text(parameter.value).strip() for parameter in node.params if not parameter.showkey]
    if name in _DASHES:
        return _DASHES[name]
    if name in _HOLE_TEMPLATES:
        return HOLE
    if name in ("convert", "cvt") and len(arguments) >= 2:
        separated = arguments[1] in ("-", "to", "and", "by", "x", "–") and len(arguments) >= 4
        return " ".join(arguments[:4] if separated else arguments[:2])
    if name == "lang" and len(arguments) >= 2:
        return arguments[1]
    if (name in _FIRST_ARGUMENT or name.startswith("lang-")) and arguments:
        return arguments[0]
    if name in ("as of", "circa", "c.") and arguments:
        return f"{'As of' if name == 'as of' else 'c.'} {arguments[0]}"
    return ""
