"""``corpus=embedded``: English prose that every installation has, for demonstrations and tests.

Sources: Python's documentation (``pydoc_data.topics``) and the docstrings of the standard library and of ``PACKAGES``.
Files are read, never imported. All triple-quoted strings are used, because several packages attach documentation to
compiled functions that way. They are found by one regular expression; parsing whole files with ``ast`` gives the same
prose in 20 times the time (150 MB of source at 1.7 MB/s).

Code, doctests, tables and markup are removed; the rest must pass :func:`looks_like_prose`.
"""

import ast
import inspect
import re
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

# Distributions that the project requires, directly or indirectly.
PACKAGES = (
    "torch", "transformers", "sympy", "pandas", "numpy", "networkx", "huggingface_hub", "wandb", "datasets",
    "matplotlib", "numba", "h5py", "hydra-core", "omegaconf", "pyarrow", "fsspec", "pydantic", "pillow", "httpx",
    "click", "Jinja2", "requests", "setuptools",
)  # fmt: skip
_IMPORT_NAMES = {"hydra-core": "hydra", "pillow": "PIL", "Jinja2": "jinja2"}  # where they differ
_SKIPPED_DIRECTORIES = {
    "test", "tests", "testing", "idlelib", "lib2to3", "site-packages", "_vendor", "_internal_vendor",
}  # fmt: skip

# Comments and one-line strings are matched, and skipped, because quotes in them do not start a string.
_LITERAL = re.compile(
    r"#[^\n]*"
    r'|"""(?P<double>(?:[^\\"]++|\\.|"(?!""))*+)"""'
    r"|'''(?P<single>(?:[^\\']++|\\.|'(?!''))*+)'''"
    r'|"(?:[^"\\\n]++|\\.)*+"?'
    r"|'(?:[^'\\\n]++|\\.)*+'?",
    re.DOTALL,
)
_PREFIX = re.compile(r"(?<![A-Za-z0-9_])[A-Za-z]{1,2}$")

_RULE = re.compile(r"[\s\-=~^*#_+:.`'\"]*")
_BULLET = re.compile(r"(?:[-*+•]|\(?\d{1,2}[.)]|\(?[a-z]\))\s+")
_DIRECTIVE = re.compile(r"\.\. |@[a-z]|<[a-z/!]|\[\[|\{%")
_FIELD = re.compile(
    r"^(?::\w+(?: [^:]*)?:"  # :param name:
    r"|\*{0,2}`{0,2}[A-Za-z_][\w.\[\]]*`{0,2}(?:\s?\([^)]*\))?(?:, \*optional\*)?\s?(?::|--?)(?!:))\s+"  # name (type):
)
_MARKUP = (
    (re.compile(r":[\w:+-]+:`~?\.?([^`<]*?)(?:\s*<[^>]*>)?`"), r"\1"),  # :func:`~a.b`
    (re.compile(r"`([^`<>]+?)\s*<[^<>`]*>`__?"), r"\1"),  # `text <url>`_
    (re.compile(r"!?\[([^\]]*)\]\([^)]*\)"), r"\1"),  # [text](url)
    (re.compile(r"\s?\[[\w#*, -]{1,12}\]_"), ""),  # [1]_
    (re.compile(r"\[`+~?([^`\]]*)`+\]"), r"\1"),  # [`name`]
    (re.compile(r"`+([^`]+)`+(?:__?\b)?"), r"\1"),  # ``code``
    (re.compile(r"\*\*?(\S(?:[^*]*\S)?)\*\*?"), r"\1"),  # **strong**, *emphasis*
    (re.compile(r"(?<!\w)_(\S[^_]*\S)_(?!\w)"), r"\1"),
    (re.compile(r"\\(?=[*_`|])"), ""),
)
_WORD = re.compile(r"(?<![\w.])[A-Za-z][a-z'’-]*(?![\w(])")
_CODE = re.compile(r"[=_{}<>|\\^~$@#*+/\[\]`]|\w\(|::")
_SENTENCE_END = re.compile(r".*[.!?][)\"'”’]*(?=\s|$)", re.DOTALL)


def embedded_sources() -> dict[str, tuple[str, str]]:
    """(version, licence) of each installed source, by name."""
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    sources = {"python": (python, "PSF-2.0")}
    for distribution in PACKAGES:
        try:
            information = metadata.metadata(distribution)
        except metadata.PackageNotFoundError:
            continue
        sources[distribution] = (information["Version"], _licence(information))
    return sources


def _licence(information: metadata.PackageMetadata) -> str:
    stated = information.get_all("License-Expression") or information.get_all("License") or []
    classifiers = [row for row in information.get_all("Classifier") or [] if row.startswith("License")]
    for licence in [*stated, *(row.rsplit(":: ", 1)[-1] for row in classifiers)]:
        if licence and len(licence) < 60:  # some packages give the whole text
            return licence
    return "not stated in the package's metadata"


def source_files() -> Iterator[tuple[Path, str, str]]:
    """(file, document name, source) of every module, sorted within each source."""
    sources = embedded_sources()
    standard_library = Path(sysconfig.get_paths()["stdlib"])
    packages = Path(sysconfig.get_paths()["purelib"]), Path(sysconfig.get_paths()["platlib"])
    yield from _files_below(standard_library, standard_library, "python")
    for distribution in PACKAGES:
        if distribution in sources:
            name = _IMPORT_NAMES.get(distribution, distribution)
            root = next((root for root in packages if (root / name).is_dir()), None)
            if root is not None:
                yield from _files_below(root / name, root, distribution)


def _files_below(directory: Path, root: Path, source: str) -> Iterator[tuple[Path, str, str]]:
    for path in sorted(directory.rglob("*.py")):
        parts = path.relative_to(root).parts
        if not _SKIPPED_DIRECTORIES.intersection(parts[:-1]) and not parts[-1].startswith("test_"):
            yield path, f"{source}:{'/'.join(parts)}", source


def module_paragraphs(path: Path) -> list[str]:
    """The prose paragraphs in the triple-quoted strings of one Python file; none if it cannot be read."""
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    find = _topics if path.parts[-2:] == ("pydoc_data", "topics.py") else triple_quoted
    return [paragraph for text in find(source) for paragraph in prose_paragraphs(text)]


def _topics(source: str) -> list[str]:
    """The texts of Python's manual: the values of a dict, whose style of quoting differs between versions."""
    dicts = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Dict)]
    values = [value.value for node in dicts for value in node.values if isinstance(value, ast.Constant)]
    return [text for text in values if isinstance(text, str)]


def triple_quoted(source: str) -> list[str]:
    """The values of the triple-quoted strings in Python ``source``, without bytes and f-strings."""
    texts = []
    for match in _LITERAL.finditer(source):
        body = match["double"] if match["double"] is not None else match["single"]
        if body is None or len(body) < 30:
            continue
        before = _PREFIX.search(source, max(0, match.start() - 3), match.start())
        prefix = before.group().lower() if before else ""
        if set(prefix) & set("bft"):
            continue
        if "\\" not in body or "r" in prefix:
            texts.append(body)
            continue
        try:
            texts.append(ast.literal_eval(match.group()))
        except (SyntaxError, ValueError):
            continue
    return texts


def prose_paragraphs(text: str) -> list[str]:
    """The prose paragraphs of one docstring, without code, tables and markup."""
    paragraphs = []
    for block in _blocks(inspect.cleandoc(text).split("\n")):
        paragraph = _without_markup(" ".join(" ".join(block).split()))
        end = _SENTENCE_END.match(paragraph)
        if end is not None and looks_like_prose(end.group()):
            paragraphs.append(end.group())
    return paragraphs


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """Group lines of equal indentation; leave out code fences, doctests, literal blocks, tables and rulers."""
    block: list[str] = []
    column = 0  # where the text of the block starts
    literal: int | None = None  # in a literal block: the indentation of the line before it
    fenced = doctest = False
    for line in lines:
        text = line.strip()
        indentation = len(line) - len(line.lstrip())
        if text.startswith(("```", "~~~")):
            fenced = not fenced
            text = ""
        elif text.startswith((">>>", "...  ", "In [")):
            doctest = True
        doctest = doctest and bool(text)
        if literal is not None and text and indentation <= literal:
            literal = None
        if not text or fenced or doctest or literal is not None or _RULE.fullmatch(text) or text.count("|") > 1:
            if block:
                yield block
                block = []
            continue
        bullet = _BULLET.match(text)
        if block and (bullet or indentation != column or _FIELD.match(text)):
            yield block
            block = []
        if _DIRECTIVE.match(text):
            literal = indentation
            continue
        if text.endswith("::"):
            literal = indentation
            text = text[:-1]
        if not block:
            column = indentation + (bullet.end() if bullet else 0)
        block.append(text[bullet.end() :] if bullet else text)
    if block:
        yield block


def _without_markup(text: str) -> str:
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    field = _FIELD.match(text)
    if field is not None and not text[0].isupper():
        text = text[field.end() :]
    text = text.replace(" .", ".").replace(" ,", ",").strip()
    return text[:1].upper() + text[1:]


def looks_like_prose(text: str) -> bool:
    """Whether a text begins with a capital, has at least five words, mostly plain ones, few code symbols, no URL."""
    if not text or not (text[0].isupper() or text[0] in "\"'“‘(") or "://" in text or ">>>" in text:
        return False
    tokens = len(text.split())
    words = len(_WORD.findall(text))
    return tokens >= 5 and words >= 0.75 * tokens and len(_CODE.findall(text)) <= 0.12 * tokens and " " in text
