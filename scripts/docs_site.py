"""A hook of mkdocs: the files beside ``docs/`` and the API reference as pages of the documentation site.

``make docs`` builds the site without a warning: every link leads to a page, every anchor to a heading.
"""

import json
import re
from base64 import b64decode
from pathlib import Path
from typing import Any

from draw_imports import LAYERS, PREPARATION_LAYERS, module_name, package_of, product_files
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "RESULTS.md": "RESULTS.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "LICENSE": "LICENSE.md",
    "notebooks/own_bert.ipynb": "own_bert.md",
    "notebooks/domain_bert.ipynb": "domain_bert.md",
}
"""Files outside of ``docs/``, and the pages that they become."""
LINK = re.compile(r"(\]\(|src=\")(?!https?:|#)([^)\"#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages. Called by mkdocs."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        if name.endswith(".ipynb"):
            content, pictures = notebook_page(text, Path(page).stem)
            for target, data in pictures.items():
                files.append(File.generated(config, target, content=data))
        else:
            content = f"# Licence\n\n```text\n{text}```\n" if name == "LICENSE" else relinked(text, "")
        files.append(File.generated(config, page, content=content))
    for picture in (ROOT / "scripts" / "results").rglob("*.[ps][nv]g"):
        path = picture.relative_to(ROOT).as_posix()
        files.append(File.generated(config, path, abs_src_path=str(picture)))
    names = []
    for package, modules in packages().items():
        names.append(f"api/{package}.md")
        files.append(File.generated(config, names[-1], content=reference(package, modules)))
    config.nav = [*config.nav, {"API": names}]
    return files


def on_page_read_source(page: Any, config: Any) -> str | None:
    """The text of a page of ``docs/`` with links that hold inside the site. Called by mkdocs."""
    path = page.file.abs_src_path
    return relinked(Path(path).read_text(encoding="utf-8"), "docs/") if path else None


def notebook_page(text: str, name: str) -> tuple[str, dict[str, bytes]]:
    """The content of a notebook as Markdown, and its figures by the names that the page gives them: ``name_1.png``."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(relinked(source, "notebooks/"))
            continue
        parts.append(f"```{'bash' if source.startswith('!') else 'python'}\n{source}\n```")
        for output in cell["outputs"]:
            if output["output_type"] == "stream":
                parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
            elif "image/png" in output["data"]:
                picture = f"{name}_{len(pictures) + 1}.png"
                pictures[picture] = b64decode("".join(output["data"]["image/png"]))
                parts.append(f"![{output['metadata']['image/png']['alt']}]({picture})")
    return "\n\n".join(parts) + "\n", pictures


def relinked(text: str, folder: str) -> str:
    """``text`` of a file in ``folder`` of the repository, with links to the pages of the site."""

    def link(found: re.Match[str]) -> str:
        path = (ROOT / folder / found[2]).resolve().relative_to(ROOT).as_posix()
        return found[1] + PAGES.get(path, path.removeprefix("docs/"))

    return LINK.sub(link, text)


def packages() -> dict[str, list[str]]:
    """The modules of each package or top-level module of the product, in the order of the layers, highest first."""
    order = [name for layer in (*reversed(LAYERS), *reversed(PREPARATION_LAYERS)) for name in sorted(layer)]
    found: dict[str, list[str]] = {name: [] for name in order}
    for path in product_files():
        if path.read_text(encoding="utf-8").strip():
            found[package_of(module_name(path))].append(module_name(path))
    return {name: modules for name, modules in found.items() if modules}


def reference(package: str, modules: list[str]) -> str:
    """The page of the API reference for ``modules``."""
    return "\n\n".join([f"# {package}", *(f"::: {name}" for name in modules)]) + "\n"
