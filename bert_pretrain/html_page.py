"""A self-contained HTML page: text, tables and figures, without any other file, for a screen of any width.

Every function escapes the text it is given and returns :class:`Html`. The page's content security policy allows no
script but the one that sorts tables, so that text from a corpus cannot run even where an escape is missing.
"""

import base64
import hashlib
import html
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SERIES = ("#1f5fa8", "#b3261e", "#1c7536", "#7d3c98", "#8a5300", "#57606a", "#b5367e")
"""Colors of lines and bars for matplotlib. :func:`drawn` replaces them by lighter ones on a dark page."""
LIGHT = {"text": "#1f2328", "muted": "#57606a", "line": "#d0d7de", "page": "#ffffff", "box": "#f4f6f8",
         "link": "#0550ae", "warning": "#6b3d00", "warning-box": "#fff3d6"}  # fmt: skip
DARK = {"text": "#e6e8eb", "muted": "#a3adb8", "line": "#3a424c", "page": "#11151a", "box": "#1b2128",
        "link": "#7cb7ff", "warning": "#ffd98a", "warning-box": "#382a08"}  # fmt: skip
DARK_SERIES = ("#7db4f0", "#ff9180", "#6fce8b", "#d4a0e4", "#e8b45c", "#a8b1bb", "#f09ac7")

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:var(--text);background:var(--page);max-width:68rem;margin:0 auto;
padding:1rem;overflow-wrap:break-word}
h1{line-height:1.2;margin:.5rem 0}h2{margin:2.5rem 0 .5rem;border-bottom:1px solid var(--line)}h3{margin:1.5rem 0 .3rem}
a{color:var(--link)}nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1rem;padding:0}
.scroll{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;min-width:min(100%,32rem);font-variant-numeric:tabular-nums}
caption,figcaption,.muted{text-align:left;color:var(--muted);font-size:.9rem}
caption{caption-side:top;padding-bottom:.3rem}caption span{display:inline-block;max-width:calc(100vw - 2rem)}
th,td{padding:.25rem .8rem .25rem 0;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th{font-weight:600}td.number,th.number{text-align:right}tbody .number{white-space:nowrap}
th button{font:inherit;color:inherit;background:none;border:0;
padding:0;cursor:pointer;text-align:inherit}th button::after{content:"\\a0\\2195";color:var(--muted)}
th[aria-sort=ascending] button::after{content:"\\a0\\2191"}th[aria-sort=descending] button::after{content:"\\a0\\2193"}
pre{background:var(--box);padding:.6rem .8rem;margin:.4rem 0;white-space:pre-wrap;font-size:.85rem;
overflow-wrap:anywhere}
.warning{color:var(--warning);background:var(--warning-box);padding:.5rem .8rem;border-left:4px solid}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1rem}
figure{margin:1rem 0}figure svg{width:100%;height:auto;color:var(--text)}
figure svg text{fill:currentColor;font-family:system-ui,sans-serif!important}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.6rem;margin:1rem 0}
.tiles div{background:var(--box);padding:.5rem .8rem;border-radius:.4rem}.tiles dt{color:var(--muted);font-size:.9rem}
.tiles dd{margin:0;font-size:1.25rem;font-weight:600}
.large:target{position:fixed;inset:0;z-index:1;margin:0;padding:1rem;overflow:auto;background:var(--page)}
.large:target figure{display:flex;flex-direction:column-reverse}.large:target svg{min-width:64rem}
.large:target figcaption{position:sticky;top:-1rem;left:0;padding:.5rem 0;background:var(--page)}
.close,.large:target .open{display:none}.large:target .close{display:inline}
summary{cursor:pointer;padding:.2rem 0}details{margin:.4rem 0}:focus-visible{outline:2px solid var(--link)}
"""
_SORT = """
for(const table of document.querySelectorAll("table.sortable")){const body=table.tBodies[0];
[...table.tHead.rows[0].cells].forEach((head,column)=>{const button=document.createElement("button");
button.append(...head.childNodes);head.append(button);button.onclick=()=>{

const up=(head.getAttribute("aria-sort")||(head.className?"ascending":"descending"))==="descending";
for(const other of table.tHead.rows[0].cells)other.removeAttribute("aria-sort");
head.setAttribute("aria-sort",up?"ascending":"descending");
const key=row=>{const cell=row.cells[column];return "value" in cell.dataset?+cell.dataset.value:cell.textContent};
const compare=(a,b)=>typeof a==="number"&&typeof b==="number"?a-b:String(a).localeCompare(String(b));
body.append(...[...body.rows].sort((a,b)=>(up?1:-1)*compare(key(a),key(b))))}})}
"""


_MADE_BY = '<meta name="generator" content="bert-pretrain">'


class Html(str):
    """Markup: text that is already escaped."""


class Number(NamedTuple):
    """A cell whose text is not its value as it is, such as "3.2%"; tables are sorted by the value."""

    value: float
    shown: str


Cell = str | int | float | Number | None


def text(value: Cell) -> Html:
    """``value`` escaped, unless it is markup; whole numbers with thousands separators, None as nothing."""
    if isinstance(value, Html):
        return value
    if isinstance(value, float):
        return Html(f"{value:g}")
    if isinstance(value, int) and not isinstance(value, bool):
        return Html(f"{value:,}")
    return Html("" if value is None else html.escape(value.shown if isinstance(value, Number) else str(value)))


def element(tag: str, *parts: Cell, **attributes: str) -> Html:
    """``<tag attributes>parts</tag>``. ``class_`` stands for ``class``, ``aria_label`` for ``aria-label``."""
    names = {name: name.rstrip("_").replace("_", "-") for name in attributes}
    more = "".join(f' {names[name]}="{html.escape(value)}"' for name, value in attributes.items())
    return Html(f"<{tag}{more}>{''.join(map(text, parts))}</{tag}>")


def page(title: str, sections: Mapping[str, Sequence[Html]], lead: Sequence[Html] = (), script: str = "") -> str:
    """The page: title, ``lead``, list of contents, and the ``sections`` (heading -> parts); empty ones are left out.

    ``script``: one more that may run, and may ask the server that the page is from.
    """
    shown = {heading: parts for heading, parts in sections.items() if parts}
    anchors = {heading: _anchor(heading) for heading in shown}
    links = [element("li", element("a", heading, href=f"#{anchor}")) for heading, anchor in anchors.items()]
    contents = element("nav", element("ul", *links), aria_label="Contents") if links else Html()
    body = [element("section", element("h2", heading), *parts, id=anchors[heading]) for heading, parts in shown.items()]
    scripts = [_SORT, script] if script else [_SORT]
    hashes = [base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in scripts]
    allowed = " ".join(f"'sha256-{code}'" for code in hashes) + ("; connect-src 'self'" if script else "")
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {allowed}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n{_MADE_BY}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)}</title>\n<style>{_variables()}{_STYLE}</style></head>\n<body>"
        + element("main", element("h1", title), *lead, contents, *body)
        + "".join(f"<script>{code}</script>" for code in scripts)
        + "</body></html>\n"
    )


def _anchor(heading: str) -> str:
    return re.sub(r"\W+", "-", heading.lower()).strip("-")


def is_page(path: Path) -> bool:
    """Whether the file is a page that :func:`page` has made."""
    with open(path, "rb") as file:
        return _MADE_BY.encode() in file.read(1000)


def _variables() -> str:
    def of(colors: dict[str, str], series: Sequence[str]) -> str:
        rows = {**colors, **{f"series-{number}": color for number, color in enumerate(series)}}
        return ":root{" + ";".join(f"--{name}:{color}" for name, color in rows.items()) + "}"

    return f"{of(LIGHT, SERIES)}\n@media (prefers-color-scheme:dark){{{of(DARK, DARK_SERIES)}}}"


def paragraph(*parts: Cell, kind: str = "") -> Html:
    """A paragraph; ``kind``: "muted" or "warning"."""
    return element("p", *parts, class_=kind) if kind else element("p", *parts)


def tiles(values: Sequence[tuple[str, Cell]]) -> Html:
    """The few values that matter most, each with its name, in a row of boxes."""
    return element(
        "dl", *(element("div", element("dt", name), element("dd", value)) for name, value in values), class_="tiles"
    )


def sample(value: str) -> Html:
    """A piece of a corpus: preformatted, in the direction of its own script."""
    return element("pre", value, dir="auto")


def folded(summary: Cell, *parts: Html, is_open: bool = False) -> Html:
    """Parts that a click on ``summary`` shows."""
    inner = [element("summary", summary), *parts]
    return element("details", *inner, open="") if is_open else element("details", *inner)


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[Cell]], is_sortable: bool = False) -> Html:
    """A table whose first column names the rows. Columns of numbers are flush right."""
    numeric = [
        all(isinstance(row[column], int | float | Number | None) for row in rows) for column in range(len(header))
    ]
    kinds = [{"class_": "number"} if is_number and rows else {} for is_number in numeric]
    head = element("tr", *(element("th", name, scope="col", **kind) for name, kind in zip(header, kinds, strict=True)))
    body = []
    for row in rows:
        cells = [element("th", row[0], scope="row", **kinds[0], **_value(row[0]))]
        cells += [element("td", cell, **kind, **_value(cell)) for cell, kind in zip(row[1:], kinds[1:], strict=True)]
        body.append(element("tr", *cells))
    inner = [element("caption", element("span", caption)), element("thead", head), element("tbody", *body)]
    made = element("table", *inner, class_="sortable") if is_sortable else element("table", *inner)
    return element("div", made, class_="scroll", tabindex="0", role="region", aria_label=caption)


def _value(cell: Cell) -> dict[str, str]:
    """The number to sort by."""
    number = cell.value if isinstance(cell, Number) else cell
    return {"data_value": repr(number)} if isinstance(number, int | float) else {}


def figures(*parts: Html) -> Html:
    """Figures side by side, where the screen is wide enough."""
    return element("div", *parts, class_="figures")


def figure(svg: Html, alt: str, caption: str) -> Html:
    """A drawing from :func:`drawn`. ``alt``: what it shows, for those who do not see it."""
    labelled = Html(svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alt)}" ', 1))
    return element("figure", labelled, element("figcaption", caption))


def large_figure(svg: Html, alt: str, caption: str, name: str, section: str) -> Html:
    """A figure called ``name`` with a link that shows it on the whole screen, and one back to ``section``, its heading.

    Without a script: the link makes it the target of the page's address, which has a style of its own.
    """
    opens = element("a", "Open large", href=f"#{name}", class_="open")
    closes = element("a", "Close", href=f"#{_anchor(section)}", class_="close")
    return element("div", figure(svg, alt, element("span", f"{caption}. ", opens, closes)), id=name, class_="large")


def drawn(chart: "Figure") -> Html:
    """A matplotlib figure as SVG to put into a page: black and :data:`SERIES` become the colors of the page.

    About 5 by 3 inches with text of 9 points is readable on a phone too.
    """
    import matplotlib as mpl  # slow to load

    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "page"}):
        chart.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    head, rest = file.getvalue().split("<svg", 1)[1].split(">", 1)
    box = re.findall(r'viewBox="[^"]*"', head)[0]
    rest = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->|\n\s*", " ", rest, flags=re.DOTALL)
    svg = f"<svg {box}>{rest.strip()}".replace("xlink:href", "href").replace("#000000", "currentColor")
    for number, color in enumerate(SERIES):
        svg = svg.replace(color, f"var(--series-{number})")
    # Figures of one page have the same ids: those that are referred to are renamed, the others left out.
    prefix = hashlib.sha256(svg.encode()).hexdigest()[:8]
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{prefix}-{found[1]}"' if found[1] in used else "", svg)
    return Html(re.sub(r'(href="|url\()#', rf"\1#{prefix}-", svg))
