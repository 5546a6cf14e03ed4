"""Make the text of the studies at ``scale=small``: novels cut into passages of 250 lines.

    python scripts/study_text.py NOVELS OUT.txt

NOVELS is a folder of one .txt file per novel, such as a clone of ``computationalstylistics/100_english_novels``. A
passage is one document of OUT.txt: documents are held out whole, and a whole novel held out would be a hundredth of the
text by one author.
"""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

LINES = 250


def main(novels: str, out: str) -> None:
    """Write the text; print its sum, so that two machines can tell that they have the same."""
    files = sorted(Path(novels).glob("*.txt"))
    if not files:
        sys.exit(f"{novels} holds no .txt files")
    found = [passage for file in files for passage in passages(file.read_text(encoding="utf-8-sig"))]
    text = ("\n\n".join(found) + "\n").encode()
    Path(out).write_bytes(text)
    print(f"{len(files)} novels, {len(found):,} passages, sha256 {hashlib.sha256(text).hexdigest()}")


def passages(novel: str) -> Iterator[str]:
    """Runs of 250 lines with text, the last of what is left; empty lines would end the document."""
    lines = [" ".join(line.split()) for line in novel.splitlines() if line.strip()]
    for start in range(0, len(lines), LINES):
        yield "\n".join(lines[start : start + LINES])


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
