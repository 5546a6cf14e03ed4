"""Wikitext -> paragraphs of prose, without markup, by ``mwparserfromhell``.

Formulas, and whatever else has no reading as words, become ``PLACEHOLDER``; a sentence with one is dropped later.
Import this module only for ``corpus=wikipedia``: the parser is slow to load.
"""

import re
from collections.abc import Iterator

import mwparserfromhell
from mwparserfromhell import nodes
from mwparserfromhell.wikicode import Wikicode

from data_prep.sources.cleaning import PLACEHOLDER
from data_prep.sources.wikitext_templates import is_known, template_text

_ITEM = "\x01"  # marks the text of a list item
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
_FORMULA_TAGS = {"math", "score", "chem", "ce"}
_BREAKING_TAGS = {"p", "div", "blockquote", "ul", "ol", "dl", "hr", "center", "poem"}
_NOT_TEXT_LINK = re.compile(r"(?i:file|image|category|media)\s*:|[a-z]{2,3}(?:-[a-z-]+)?:\S")  # last: other languages
_PROJECT = re.compile(r"^:?(?:wikt|wiktionary|wikisource|wikiquote|[swbqnvd]):(?=\S)(?:[a-z]{2,3}:)?", re.IGNORECASE)
_SUPERSCRIPTS = str.maketrans("0123456789+-−", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻")
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
# Comments and references, a quarter of the text, are removed first, which saves parsing them.
_COMMENTS_AND_REFERENCES = re.compile(
    r"<!--.*?-->|<ref(?:\s[^<>]*)?/>|<ref(?:\s[^<>]*)?>.*?</ref\s*>", re.DOTALL | re.IGNORECASE
)

_TIDY = (
    (re.compile(r"'{2,}"), ""),  # bold and italic
    (re.compile(r"__[A-Z]+__"), ""),
    (re.compile(r"[\u00ad\u200b-\u200f\u2060\ufeff]"), ""),
    (re.compile(r"([(\[])[\s,;:–—]+"), r"\1"),  # "(; 3 June" after a template was removed
    (re.compile(r"[\s,;:–—]+([)\]])"), r"\1"),
    (re.compile(r"\(\s*(?:or|and|pronounced|also|born|listen|e\.g\.|i\.e\.|cf\.)?\s*\)|\[\s*\]"), ""),
    (re.compile(r"\(see(?: also)?\b[^()]*\)", re.IGNORECASE), ""),  # "(see below)": nothing to see in plain text
    (re.compile(r"[ \t\u00a0]+"), " "),
    (re.compile(r" +([,.;:!?)])(?=\s|$)"), r"\1"),
    (re.compile(r"([,;:])(?:\s*[,;:])+"), r"\1"),
    (re.compile(r"[,;:]\.(?!\.)"), "."),
    (re.compile(r"^[\s:;,*#]+"), ""),
)
_LEFT_OVER = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}|<[a-z/!]|^\s*[|!]", re.IGNORECASE)
_POINTER = re.compile(r"\(?(?:see also|see more at|main articles?:|for more (?:details|information))\b", re.IGNORECASE)
_POINTER_LENGTH = 160  # characters; a longer paragraph is more than a pointer


def wikitext_paragraphs(text: str) -> list[str]:
    """The paragraphs and list items of an article, without markup and without sections of references and links."""
    wikicode = mwparserfromhell.parse(_COMMENTS_AND_REFERENCES.sub("", text), skip_style_tags=True)
    pieces: list[str] = []
    skipped_level = 0  # level of the dropped section that the node is in
    for node in wikicode.nodes:
        if isinstance(node, nodes.Heading):
            title = str(node.title).strip().strip("'").lower()
            if skipped_level == 0 or node.level <= skipped_level:
                skipped_level = node.level if title in _DROPPED_SECTIONS else 0
            pieces.append("\n\n")
        elif skipped_level == 0:
            pieces.append(_node_text(node))
    return [paragraph for text in _joined_lines("".join(pieces)) if (paragraph := _tidied(text))]


def text_rejected_as(paragraph: str) -> str | None:
    """The rule by which a paragraph is dropped: markup that was not parsed, or a pointer to an article; else None."""
    if _LEFT_OVER.search(paragraph):
        return "markup_left_over"
    if len(paragraph) < _POINTER_LENGTH and _POINTER.match(paragraph):
        return "pointer_to_another_article"
    return None


def _joined_lines(text: str) -> Iterator[str]:
    """Paragraphs as in MediaWiki: lines up to an empty one; each list item is a paragraph."""
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
        return _link_text(node)
    if isinstance(node, nodes.ExternalLink):
        return _code_text(node.title)
    if isinstance(node, nodes.Tag):
        return _tag_text(node)
    if isinstance(node, nodes.Template):
        return _template_text(node)
    return ""  # comments, arguments, headings in templates


def _link_text(node: nodes.Wikilink) -> str:
    title = str(node.title).strip()
    if _NOT_TEXT_LINK.match(title) and not _PROJECT.match(title):
        return ""
    if node.text is not None:
        return _code_text(node.text)
    return _PROJECT.sub("", _code_text(node.title).strip()).lstrip(":").partition("#")[0]


def _tag_text(node: nodes.Tag) -> str:
    name = str(node.tag).strip().lower()
    if name in _FORMULA_TAGS:
        return PLACEHOLDER
    if name in _DROPPED_TAGS:
        return ""
    text = _code_text(node.contents)
    if name in ("li", "dd", "dt"):
        return f"\n{_ITEM}{text}"
    if name == "br":
        return " "
    if name == "sup":
        return _superscript(text.strip())
    if name == "sub":
        return text.translate(_SUBSCRIPTS) if text.isdigit() else text
    return f"\n\n{text}\n\n" if name in _BREAKING_TAGS else text


def _superscript(text: str) -> str:
    """Digits as superscript characters (10²⁴, not 1024); "st" and "TM" unchanged; other exponents are formulas."""
    raised = text.translate(_SUPERSCRIPTS)
    if not any(letter in "0123456789+-−" for letter in text):
        return text if text.isalpha() and len(text) > 1 else PLACEHOLDER if text.isalpha() else text
    return PLACEHOLDER if any(letter.isascii() for letter in raised) else raised


def _template_text(node: nodes.Template) -> str:
    template = str(node.name).strip().lower().replace("_", " ")
    if not is_known(template):
        return ""
    positional: dict[int, str] = {}
    named: dict[str, str] = {}
    for parameter in node.params:
        name, value = str(parameter.name).strip(), _code_text(parameter.value).strip()
        if name.isdigit():
            positional[int(name)] = value
        else:
            named[name.lower()] = value
    arguments = [positional.get(number, "") for number in range(1, max(positional, default=0) + 1)]
    return template_text(template, arguments, named)
