"""Studies onto the results page: ``python scripts/keep_study.py DEVICE OUT_DIR...``, then ``write_results.py``.

Copies ``study.json`` and ``study.png`` of finished studies to ``scripts/results``. DEVICE: on what they ran, in words.
"""

import json
import shutil
import sys
from pathlib import Path

from results_file import write_result

from bert_pretrain.study.verdict import RULE

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    """Keep each of the studies given."""
    for out_dir in map(Path, sys.argv[2:]):
        study = json.loads((out_dir / "study.json").read_text(encoding="utf-8"))
        kind = "cpu" if "CPU" in study["device"] else "gpu"
        path = RESULTS / f"{kind}_{study['date']}_study_{study['options']['name']}_{study['scale']}.json"
        verdicts = "\n".join(f"- {sentence}" for sentence in study["verdicts"])
        note = f"The article: {study['article']}\n\n{verdicts}\n\n{study['note']} {RULE}"
        what = f"Study, scale {study['scale']}: {study['what']}"
        kept = {key: study[key] for key in ("date", "command", "curves")}
        write_result(path, what, study["rows"], note, **kept, device=sys.argv[1])
        shutil.copyfile(out_dir / "study.png", path.with_suffix(".png"))


if __name__ == "__main__":
    main()
