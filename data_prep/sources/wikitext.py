"""Wikitext -> paragraphs of prose, without markup, by ``mwparserfromhell``.

Formulas, and whatever else has no reading as words, become ``PLACEHOLDER``; a sentence with one is dropped later.
Import this module only for ``corpus=wikipedia``: the parser is slow to load.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mwparserfromhell
from mwparserfromhell import nodes
from mwparserfromhell.wikicode import Wikicode

from data_prep.sources.cleaning import PLACEHOLDER, well_formed
from data_prep.sources.wikitext_names import DROPPED_SECTIONS, NO_TEXT
from data_prep.sources.wikitext_templates import is_known, is_note, template_text

_ITEM = "\x01"  # marks the text of a list item
_HOLE = "\x02"  # stands for a template that is not known
_DROPPED_TAGS = {
    "ref", "references", "table", "gallery", "timeline", "imagemap", "code", "syntaxhighlight", "source", "pre", "tr",
    "td", "th", "caption", "templatestyles", "graph", "mapframe", "maplink", "hiero", "categorytree",
    "inputbox", "section",
}  # fmt: skip
_FORMULA_TAGS = {"math", "score", "chem", "ce"}
_BREAKING_TAGS = {"p", "div", "blockquote", "ul", "ol", "dl", "hr", "center", "poem"}
_OTHER_LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[a-z-]+)?:\S")
_PROJECT = re.compile(r"^:?(?:wikt|wiktionary|wikisource|wikiquote|[swbqnvd]):(?=\S)(?:[a-z]{2,3}:)?", re.IGNORECASE)
_SUPERSCRIPTS = str.maketrans("0123456789+-−", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻")
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
# Comments and references, a quarter of the text, are removed first, which saves parsing them.
_COMMENTS_AND_REFERENCES = re.compile(
    r"<!--.*?-->|<ref(?:\s[^<>]*)?/>|<ref(?:\s[^<>]*)?>.*?</ref\s*>", re.DOTALL | re.IGNORECASE
)
_INDENTED_TABLE = re.compile(r"^[:*#;]+\s*(?=\{\|)", re.MULTILINE)  # the parser does not see it as a table
_CONVERSION = re.compile(r"-\{((?:[^{}]|\{(?!-)|\}(?!-))*?)\}-")  # between the scripts of a language
_IN_BRACKETS = re.compile(r"\([^()]*\)|\[[^\[\]]*\]|（[^（）]*）")
_CLAUSES = re.compile(r"([;,]\s|[；，、])")
_HOLES_BEHIND = re.compile(rf"(?<=[^\s(\[（{_HOLE}]){_HOLE}+")
_MEDIA = re.compile(r".+:.+\.(?:jpe?g|png|gif|svg|tiff?|webp|webm|og[agv]|mp3|mid|pdf|djvu)$", re.IGNORECASE)
_APOSTROPHES = re.compile(r"'{2,}")
_HOLES_BETWEEN = re.compile(rf"(^|[.!?…。！？][\"'”’»)\]]*\s)\s*(?:{_HOLE}\s*)+(?=(.?))")

_TIDY = (
    (re.compile(r"__[A-Z]+__"), ""),
    (re.compile(r"[\u00ad\u200b\u200e\u200f\u2060\ufeff]"), ""),  # joiners are left to the cleaning
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


def wikitext_paragraphs(text: str, no_text: Sequence[str] = ()) -> list[str]:
    """The paragraphs and list items of an article, without markup and without sections of references and links.

    ``no_text``: more namespaces whose links are no text, in lower case.
    """
    text = _INDENTED_TABLE.sub("", _COMMENTS_AND_REFERENCES.sub("", text))
    wikicode = mwparserfromhell.parse(_CONVERSION.sub(_converted, text), skip_style_tags=True)
    reader = _Reader(NO_TEXT.union(no_text))
    pieces: list[str] = []
    skipped_level = 0  # level of the dropped section that the node is in
    for node in wikicode.nodes:
        if isinstance(node, nodes.Heading):
            title = str(node.title).strip().strip("'").lower()
            if skipped_level == 0 or node.level <= skipped_level:
                skipped_level = node.level if title in DROPPED_SECTIONS else 0
            pieces.append("\n\n")
        elif skipped_level == 0:
            pieces.append(reader.node_text(node))
    return [paragraph for text in _joined_lines("".join(pieces)) if (paragraph := _tidied(_without_holes(text)))]


def _converted(match: re.Match[str]) -> str:
    """The text of ``-{...}-`` in simplified characters, or in the first form that is given."""
    flag, bar, content = match.group(1).rpartition("|")
    if bar and set(flag.strip().upper()) & {"H", "T"}:  # a rule for the page or its title, not shown
        return ""
    forms = [form.partition(":") for form in content.split(";") if ":" in form]
    named = {name.strip().lower(): text.strip() for name, _, text in forms}
    return next((named[name] for name in ("zh-hans", "zh-cn", "sr-ec") if name in named), "") or next(
        iter(named.values()), content
    )


def _without_holes(text: str) -> str:
    """A paragraph without the marks of unknown templates, but for those that stand where words are missing.

    Nothing is missing behind a word or full stop without a space (notes), and between sentences. In brackets, what lies
    between the commas around the mark is left out.
    """
    if _HOLE not in text:
        return text
    text = _HOLES_BEHIND.sub("", text)
    text = _IN_BRACKETS.sub(lambda match: _bracket_without_holes(match.group()), text)
    text = _HOLES_BETWEEN.sub(lambda match: match.group(1) + PLACEHOLDER * match.group(2).islower(), text)
    return text.replace(_HOLE, PLACEHOLDER)


def _bracket_without_holes(bracket: str) -> str:
    """``bracket`` without its clauses that have a hole; nothing if all have."""
    if _HOLE not in bracket:
        return bracket
    clauses = _CLAUSES.split(bracket[1:-1])
    kept = [first for first in range(0, len(clauses), 2) if _HOLE not in clauses[first]]
    text = "".join("".join(clauses[max(first - 1, 0) : first + 1]) for first in kept)
    return bracket[0] + text + bracket[-1] if kept else ""


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


def _without_quotes(text: str) -> str:
    """Without the marks of bold and italic, as MediaWiki reads them: an apostrophe of l''''uomo''' is text.

    If both are unbalanced, one mark of three is an apostrophe and italic: behind one letter (l'''uomo''), else a word.
    """
    runs = list(_APOSTROPHES.finditer(text))
    marks = [3 if len(run.group()) == 4 else min(len(run.group()), 5) for run in runs]
    as_text = [len(run.group()) - mark for run, mark in zip(runs, marks, strict=True)]
    threes = [number for number, run in enumerate(runs) if len(run.group()) == 3]
    if threes and sum(mark in (2, 5) for mark in marks) % 2 and sum(mark in (3, 5) for mark in marks) % 2:
        behind = [text[max(runs[number].start() - 2, 0) : runs[number].start()] for number in threes]
        ranks = [2 if before[-1:] in ("", " ") else 0 if before[:-1].strip() == "" else 1 for before in behind]
        as_text[threes[ranks.index(min(ranks))]] = 1
    pieces = iter(as_text)
    return _APOSTROPHES.sub(lambda _: "'" * next(pieces), text)


def _tidied(text: str) -> str:
    text = _without_quotes(text)
    for pattern, replacement in _TIDY:
        text = pattern.sub(replacement, text)
    return text.strip()


@dataclass(frozen=True)
class _Reader:
    """The text of parsed wikitext."""

    no_text: frozenset[str]

    def code_text(self, code: Wikicode | None) -> str:
        return "".join(map(self.node_text, code.nodes)) if code is not None else ""

    def node_text(self, node: nodes.Node) -> str:
        if isinstance(node, nodes.Text):
            return str(node.value)
        if isinstance(node, nodes.HTMLEntity):
            return well_formed(str(node.normalize()))
        if isinstance(node, nodes.Wikilink):
            return self._link_text(node)
        if isinstance(node, nodes.ExternalLink):
            return self.code_text(node.title)
        if isinstance(node, nodes.Tag):
            return self._tag_text(node)
        if isinstance(node, nodes.Template):
            return self._template_text(node)
        return ""  # comments, arguments, headings in templates

    def _link_text(self, node: nodes.Wikilink) -> str:
        title = str(node.title).strip()
        namespace, colon, _ = title.partition(":")
        is_media = (colon and namespace.strip().lower() in self.no_text) or _MEDIA.match(title)
        is_text = not is_media and not _OTHER_LANGUAGE.match(title)
        if not is_text and not _PROJECT.match(title):
            return ""
        if node.text is not None:
            return self.code_text(node.text)
        return _PROJECT.sub("", self.code_text(node.title).strip()).lstrip(":").partition("#")[0]

    def _tag_text(self, node: nodes.Tag) -> str:
        name = str(node.tag).strip().lower()
        if name in _FORMULA_TAGS:
            return PLACEHOLDER
        if name in _DROPPED_TAGS:
            return ""
        text = self.code_text(node.contents)
        if name in ("li", "dd", "dt"):
            return f"\n{_ITEM}{text}"
        if name == "br":
            return " "
        if name == "sup":
            return _superscript(text.strip())
        if name == "sub":
            return text.translate(_SUBSCRIPTS) if text.isdigit() else text
        return f"\n\n{text}\n\n" if name in _BREAKING_TAGS else text

    def _template_text(self, node: nodes.Template) -> str:
        name = str(node.name).strip().lower().replace("_", " ")
        name, colon, value = name.partition(":")
        if colon and is_known(name):  # a parser function: {{formatnum:1234}}
            return template_text(name, [value.strip()], {})
        if not is_known(name):
            return "" if is_note(name) or "\n" in str(node) else _HOLE  # of several lines: a box
        positional: dict[int, str] = {}
        named: dict[str, str] = {}
        for parameter in node.params:
            key = str(parameter.name).strip()
            text = self.code_text(parameter.value).strip()
            if key.isdigit():
                positional[int(key)] = text
            else:
                named[key.lower()] = text
        arguments = [positional.get(number, "") for number in range(1, max(positional, default=0) + 1)]
        return template_text(name, arguments, named)


def _superscript(text: str) -> str:
    """Digits as superscript characters (10²⁴, not 1024); "st" and "TM" unchanged; other exponents are formulas."""
    raised = text.translate(_SUPERSCRIPTS)
    if not any(letter in "0123456789+-−" for letter in text):
        return text if text.isalpha() and len(text) > 1 else PLACEHOLDER if text.isalpha() else text
    return PLACEHOLDER if any(letter.isascii() for letter in raised) else raised
