"""The parts of an HTML page: escaped, well-formed, without other files, readable in light and dark."""

import re
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from bert_pretrain import html_page
from bert_pretrain.html_page import DARK, DARK_SERIES, LIGHT, SERIES, Number

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Checked(HTMLParser):
    """Parses a page; raises for tags that are not balanced; collects ids, references and texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.texts: list[tuple[str, str]] = []  # the innermost tag, and its text
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()
        assert not self.open
        self.references += re.findall(r"url\(([^)]*)\)", page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert len(found) == len(attrs)
        self.tags.append(tag)
        self.attributes.append((tag, found))
        self.ids += [str(found["id"])] if "id" in found else []
        self.references += [str(found[name]) for name in ("href", "src") if name in found]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))


def check_page(page: str) -> Checked:
    """Parse a page and check what holds for every page: balanced, no duplicate ids, no reference to the outside."""
    found = Checked(page)
    assert len(set(found.ids)) == len(found.ids)
    inside = {f"#{name}" for name in found.ids}
    assert [name for name in found.references if name not in inside and not name.startswith("data:")] == []
    assert found.tags.count("script") == 1  # the one that sorts tables
    for tag, attributes in found.attributes:
        assert not any(name.startswith("on") for name in attributes), tag
        assert tag != "th" or "scope" in attributes
        assert tag != "svg" or attributes["aria-label"]
    assert found.tags.count("caption") == found.tags.count("table")
    return found


def chart(color: str) -> html_page.Html:
    figure = Figure(figsize=(5, 3))
    axes = figure.subplots()
    axes.plot([0, 1, 2], [3, 5, 4], color=color, marker="o")
    axes.set(xlabel="a < b & c")
    return html_page.drawn(figure)


def test_a_page_is_whole_and_escapes_everything() -> None:
    evil = "<script>alert(1)</script>\"'&</pre>"
    parts = [
        html_page.table(evil, [evil, "n"], [[evil, 1234], [evil, Number(0.5, "50%")]], is_sortable=True),
        html_page.figures(
            html_page.figure(chart(SERIES[0]), evil, evil), html_page.figure(chart(SERIES[1]), "alt", "below")
        ),
        html_page.paragraph(evil, kind="warning"),
        html_page.folded(evil, html_page.sample(evil)),
    ]
    found = check_page(html_page.page(evil, {f"Head {evil}": parts, "left out": []}, [html_page.paragraph(evil)]))
    shown = [tag for tag, value in found.texts if value == evil]
    assert shown == ["title", "h1", "p", "caption", "th", "th", "th", "figcaption", "p", "summary", "pre"]
    assert ("td", "1,234") in found.texts
    assert ("td", "50%") in found.texts
    values = [attributes.get("data-value") for tag, attributes in found.attributes if tag == "td"]
    assert values == ["1234", "0.5"]
    assert not any("left out" in value for _, value in found.texts)


def test_a_drawing_takes_the_colors_of_the_page() -> None:
    svg = chart(SERIES[2])
    assert "var(--series-2)" in svg
    assert "currentColor" in svg
    assert not re.search(r" #[0-9a-f]{6}", svg)
    assert chart(SERIES[2]) == svg


def luminance(color: str) -> float:
    """Relative luminance, WCAG 2.2."""
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("colors", "series"), [(LIGHT, SERIES), (DARK, DARK_SERIES)], ids=["light", "dark"])
def test_contrast_is_enough_to_read(colors: dict[str, str], series: tuple[str, ...]) -> None:
    pairs = [(colors["warning"], colors["warning-box"])]
    pairs += [(colors[name], colors[back]) for name in ("text", "muted", "link") for back in ("page", "box")]
    pairs += [(color, colors["page"]) for color in series]
    for pair in pairs:
        light, dark = sorted(map(luminance, pair), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, pair
