"""Looks at pages in a headless Chromium, at two widths, light and dark: accessibility, references, width, screenshots.

    python scripts/prove_pages.py RESULT.json FOLDER --axe axe.min.js report=runs/demo/report.html \
        live=http://127.0.0.1:8765/ docs=site/index.html mlflow=http://127.0.0.1:5000/#/experiments/1/runs/ID

Needs playwright (``pip install playwright``), a Chromium, and axe-core (``npm pack axe-core``). FOLDER gets screenshots
of the first screen, NAME_WIDTH_SCHEME.png. Folded parts are opened for axe. A page of another program (``mlflow``) is
looked at, not judged. Fails if a page has a serious fault of accessibility, asks for something from outside, is wider
than the screen, or reports an error.
"""

import sys
from pathlib import Path
from typing import Any

from results_file import argument_parser, write_result

SCREENS = {1280: 900, 390: 844}
SERIOUS = ("serious", "critical")
OTHERS = ("mlflow",)
OPEN_ALL = "document.querySelectorAll('details').forEach(part => part.open = true)"


def look(browser: Any, name: str, address: str, width: int, scheme: Any, axe: str, folder: Path) -> dict[str, Any]:
    """Open the page; what axe and the browser find. Writes the screenshot."""
    context = browser.new_context(
        viewport={"width": width, "height": SCREENS[width]},
        color_scheme=scheme,
        bypass_csp=True,
        reduced_motion="reduce",
    )
    page = context.new_page()
    origin = address.split("/")[2] if "://" in address else ""
    asked, errors = list[str](), list[str]()
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfailed", lambda request: errors.append(f"{request.url} failed"))
    page.goto(address if "://" in address else Path(address).resolve().as_uri())
    page.wait_for_timeout(5000 if name in OTHERS else 500)
    page.screenshot(path=folder / f"{name}_{width}_{scheme}.png")
    page.evaluate(OPEN_ALL)
    page.evaluate(axe)
    faults = page.evaluate("axe.run()")["violations"]
    too_wide = page.evaluate("document.documentElement.scrollWidth > innerWidth")
    context.close()
    inside = ("file:", "data:", "blob:", f"http://{origin}/") if origin else ("file:", "data:", "blob:")
    found: dict[bool, list[str]] = {True: [], False: []}
    for fault in faults:
        found[fault["impact"] in SERIOUS].append(fault["id"])
    return {
        "page": name,
        "width": width,
        "scheme": scheme,
        "serious faults": "not judged" if name in OTHERS else ", ".join(found[True]) or "none",
        "other faults": "not judged" if name in OTHERS else ", ".join(found[False]) or "none",
        "outside": ", ".join(url for url in asked if not url.startswith(inside)) or "none",
        "errors": "; ".join(errors) or "none",
        "fits": "no" if too_wide else "yes",
    }


def main() -> None:
    """Look at each page in each way."""
    from playwright.sync_api import sync_playwright  # --help works without it

    parser = argument_parser(__doc__)
    parser.add_argument("result", type=Path, help="JSON file to write")
    parser.add_argument("folder", type=Path, help="where the screenshots go")
    parser.add_argument("pages", nargs="+", help="NAME=FILE or NAME=ADDRESS")
    parser.add_argument("--axe", type=Path, required=True, help="axe.min.js of axe-core")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    given = parser.parse_args()
    given.folder.mkdir(exist_ok=True)
    axe, rows = given.axe.read_text(encoding="utf-8"), []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=given.chromium, args=["--no-sandbox", "--disable-gpu"])
        for name, _, address in (page.partition("=") for page in given.pages):
            for width in SCREENS:
                rows += [look(browser, name, address, width, scheme, axe, given.folder) for scheme in ("light", "dark")]
        browser.close()
    ours = [row for row in rows if row["page"] not in OTHERS]
    expected = {"serious faults": "none", "outside": "none", "errors": "none", "fits": "yes"}
    write_result(given.result, "Pages in a headless Chromium", rows)
    if faults := [row for row in ours if expected.items() - row.items()]:
        sys.exit(f"FAILED: {faults}")


if __name__ == "__main__":
    main()
