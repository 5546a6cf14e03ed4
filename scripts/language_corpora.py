"""Corpora of many languages and kinds in Debian and npm packages, and how their text is read."""

import gzip
import html.parser
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MOST_BYTES = 3_000_000  # of text a corpus
_PARAGRAPHS = {"p", "dd", "li", "div"}  # the books have <div class="para">
_COLOUR = re.compile("\x1b\\[[\\d;]*m")

OWN_LANGUAGE = ("corpus.cleaning.language_filter=true",)  # some pages are not translated


@dataclass(frozen=True)
class Corpus:
    """A corpus in a package."""

    name: str
    language: str
    kind: str
    package: str
    files: str  # glob in the unpacked package
    reader: str  # of READERS
    options: tuple[str, ...] = ()
    vocab_size: int = 1000  # small: much of a word can be foreseen from its other pieces
    letters: str = ""  # keep paragraphs with most letters of this range only: the rest is not translated


CORPORA = [
    Corpus("german_manual_pages", "de", "manual pages", "manpages-de", "**/man*/*.gz", "manual"),
    Corpus("french_reference", "fr", "wrapped text", "debian-reference-fr", "**/*.txt.gz", "wrapped"),
    Corpus("spanish_quotes", "es", "quotations", "fortunes-es", "**/es/*.fortunes", "quotes"),
    Corpus("russian_quotes", "ru", "quotations and jokes", "fortunes-ru", "**/ru/*", "quotes"),
    Corpus("finnish_help", "fi", "help of a program", "libreoffice-help-fi", "**/text/**/*.html", "pages"),
    Corpus("turkish_book", "tr", "book", "debian-handbook", "**/html/tr-TR/*.html", "pages", OWN_LANGUAGE),
    Corpus("chinese_quotes", "zh", "quotations and poems", "fortunes-zh", "**/fortunes/*", "quotes", vocab_size=8000),
    Corpus("japanese_manual_pages", "ja", "manual pages", "manpages-ja", "**/man*/*.gz", "manual", vocab_size=4000),
    Corpus("hindi_help", "hi", "help of a program", "libreoffice-help-hi", "**/text/**/*.html", "pages", letters="ऀ-ॿ"),
    Corpus("arabic_book", "ar", "book", "debian-handbook", "**/html/ar-MA/*.html", "pages", letters="؀-ۿ"),
    Corpus(
        "arabic_scripture", "ar", "scripture, JSON", "npm:quran-json", "**/dist/quran.json", "copy",
        ("corpus=jsonl", "corpus.text_field=verses.text", "cleaning@corpus.cleaning=off"),
    ),
    Corpus(
        "server_logs", "en", "logs", "fail2ban", "**/tests/files/logs/*", "plain",
        ("corpus.documents=line", "corpus.lines=sentence", "cleaning@corpus.cleaning=off", "sample_kind=single"),
    ),
    Corpus(
        "virus_genome", "en", "DNA", "bowtie2-examples", "**/reference/*.fa*", "genome",
        ("corpus.documents=line", "corpus.lines=sentence", "cleaning@corpus.cleaning=off", "sample_kind=single"),
    ),
]  # fmt: skip


class _Page(html.parser.HTMLParser):
    """The paragraphs of a page of HTML, without what is not prose."""

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[str] = []
        self._inside = False
        self._skipped = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._skipped += tag in ("script", "style", "pre")
        if tag in _PARAGRAPHS and (tag != "div" or ("class", "para") in attrs):
            self.paragraphs.append("")
            self._inside = True

    def handle_endtag(self, tag: str) -> None:
        self._skipped -= tag in ("script", "style", "pre")
        if tag in _PARAGRAPHS:
            self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside and not self._skipped:
            self.paragraphs[-1] += data


def pages(path: Path) -> list[list[str]]:
    """A page of HTML: one document."""
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return [page.paragraphs]


def manual(path: Path) -> list[list[str]]:
    """A manual page, laid out by groff on a line so long that no paragraph is broken: one document."""
    groff = ["groff", "-K", "utf8", "-t", "-mandoc", "-Tutf8", "-rLL=5000n", "-rHY=0", "-P-cbou"]
    done = subprocess.run(groff, input=gzip.decompress(path.read_bytes()), capture_output=True, check=False)
    return [[line for line in done.stdout.decode(errors="replace").splitlines() if line.startswith("  ")]]


def quotes(path: Path) -> list[list[str]]:
    """Fortune cookies: a document each; who said it is left out."""
    if path.suffix or path.name.startswith("."):
        path = path if path.suffix == ".fortunes" else Path("/dev/null")
    text = _COLOUR.sub("", path.read_text(encoding="utf-8", errors="replace"))
    cookies = [cookie.partition("\n\t\t--")[0] for cookie in re.split(r"^%$", text, flags=re.MULTILINE)]
    return [re.split(r"\n\s*\n", cookie) for cookie in cookies]


def wrapped(path: Path) -> list[list[str]]:
    """Wrapped text: paragraphs between empty lines, twenty a document."""
    paragraphs = re.split(r"\n\s*\n", gzip.decompress(path.read_bytes()).decode())
    return [paragraphs[first : first + 20] for first in range(0, len(paragraphs), 20)]


def plain(path: Path) -> list[list[str]]:
    """A document a line, but for comments."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [[line] for line in lines if line.strip() and not line.startswith("#")]


def genome(path: Path) -> list[list[str]]:
    """Windows of 600 bases in overlapping words of six, three apart: a document each."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    bases = re.sub(r"^>.*$|\s", "", data.decode(), flags=re.MULTILINE)
    words = [bases[start : start + 6] for start in range(0, len(bases) - 6, 3)]
    return [[" ".join(words[first : first + 200])] for first in range(0, len(words), 200)]


READERS = {"pages": pages, "manual": manual, "quotes": quotes, "wrapped": wrapped, "plain": plain, "genome": genome}


def unpacked(package: str, work: Path) -> Path:
    """The files of a package, downloaded and unpacked unless they are there."""
    registry, _, name = package.rpartition(":")
    folder = work / "packages" / name
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        partial.mkdir(parents=True, exist_ok=True)
        get = ["npm", "pack", "--silent", name] if registry == "npm" else ["apt-get", "download", "-q", name]
        subprocess.run(get, cwd=partial, check=True, capture_output=True)
        (archive,) = [path for path in partial.iterdir() if path.suffix in (".deb", ".tgz")]
        unpack = ["tar", "xzf", archive.name] if registry == "npm" else ["dpkg-deb", "-x", archive.name, "."]
        subprocess.run(unpack, cwd=partial, check=True)
        partial.rename(folder)
    return folder


def documents(corpus: Corpus, work: Path) -> Iterator[list[str]]:
    """The documents of a corpus, as paragraphs of one line."""
    size = 0
    for path in sorted(unpacked(corpus.package, work).glob(corpus.files)):
        if not path.is_file() or path.is_symlink():
            continue
        for document in READERS[corpus.reader](path):
            paragraphs = [" ".join(text.split()) for text in document]
            kept = [text for text in paragraphs if text and (not corpus.letters or mostly(text, corpus.letters))]
            size += sum(len(text.encode()) for text in kept)
            if kept:
                yield kept
            if size > MOST_BYTES:
                return


def mostly(text: str, letters: str) -> bool:
    """Whether most letters of a text are in a range."""
    return 2 * len(re.findall(f"[{letters}]", text)) > sum(map(str.isalpha, text))


def corpus_file(corpus: Corpus, work: Path) -> Path:
    """The corpus as ``prepare`` reads it, written unless it is there."""
    path = work / corpus.name / ("corpus.json" if corpus.reader == "copy" else "corpus.txt")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        if corpus.reader == "copy":
            (found,) = unpacked(corpus.package, work).glob(corpus.files)
            text = found.read_text(encoding="utf-8")
        else:
            between = "\n" if "corpus.documents=line" in corpus.options else "\n\n"
            text = between.join("\n".join(paragraphs) for paragraphs in documents(corpus, work)) + "\n"
        path.write_text(text, encoding="utf-8")
    return path
