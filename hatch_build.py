"""Puts the commit of the checkout into the wheel and the source archive, for ``bert-pretrain --version``."""

import runpy
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CommitFile(BuildHookInterface):
    """Adds ``bert_pretrain/COMMIT``. Not in an editable package, which asks git itself."""

    file: Path | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """As in hatchling."""
        if version == "editable":
            return
        program = runpy.run_path(str(Path(self.root, "bert_pretrain", "program.py")))
        if program["WRITTEN"].exists() or not program["commit"]():
            return
        with tempfile.NamedTemporaryFile("w", delete=False) as file:
            file.write(program["commit"]() + "\n")
        self.file = Path(file.name)
        self.file.chmod(0o644)
        build_data["force_include"][file.name] = "bert_pretrain/COMMIT"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """As in hatchling."""
        if self.file:
            self.file.unlink()
