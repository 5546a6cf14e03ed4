"""Make the text of the studies at ``scale=small``: novels cut into passages of 250 lines.

    python scripts/study_text.py NOVELS OUT.txt

NOVELS is a folder of one .txt file per novel, such as a clone of ``computationalstylistics/100_english_novels``. A
passage is one document of OUT.txt. Documents are held out whole: of whole novels, these would be too few.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from results_file import argument_parser

LINES = 250


def main() -> None:
    """Write the text; print its sum, so that two machines can tell that they have the same."""
    parser = argument_parser(__doc__)
    parser.add_argument("novels", metavar="NOVELS", type=Path)
    parser.add_argument("out", metavar="OUT.txt", type=Path)
    given = parser.parse_args()
    files = sorted(given.novels.glob("*.txt"))
    if not files:
        parser.error(f"NOVELS is {given.novels}, which has no .txt files; give a folder with one for each novel")
    found = [passage for file in files for passage in passages(file.read_text(encoding="utf-8-sig"))]
    text = ("\n\n".join(found) + "\n").encode()
    given.out.write_bytes(text)
    print(f"{len(files)} novels, {len(found):,} passages, sha256 {hashlib.sha256(text).hexdigest()}")


def passages(novel: str) -> Iterator[str]:
    """Runs of 250 lines with text, the last of what is left; empty lines would end the document."""
    lines = [" ".join(line.split()) for line in novel.splitlines() if line.strip()]
    for start in range(0, len(lines), LINES):
        yield "\n".join(lines[start : start + LINES])


if __name__ == "__main__":
    main()
