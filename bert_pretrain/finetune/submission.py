"""``bert-pretrain glue-zip``: the archive that GLUE's server takes."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_pretrain.errors import ConfigError, as_config_error, require
from bert_pretrain.files.file_system import check_new_file, new_file
from bert_pretrain.options.entry_point import entry_point

FILES = {
    "CoLA.tsv": ("cola", 1_063),
    "SST-2.tsv": ("sst2", 1_821),
    "MRPC.tsv": ("mrpc", 1_725),
    "STS-B.tsv": ("stsb", 1_379),
    "QQP.tsv": ("qqp", 390_965),
    "MNLI-m.tsv": ("mnli", 9_796),
    "MNLI-mm.tsv": ("mnli", 9_847),
    "QNLI.tsv": ("qnli", 5_463),
    "RTE.tsv": ("rte", 3_000),
    "WNLI.tsv": ("wnli", 146),
    "AX.tsv": ("mnli", 1_104),
}
"""The files that the server requires: the task that predicts each, and the examples of its test set."""


@dataclass
class SubmissionConfig:
    """Options of ``bert-pretrain glue-zip``."""

    results: list[str]
    """Directories that finetune wrote with predict_test=true (its out_dir), one a task, or directories of these."""
    out_file: str
    """Archive to write."""
    overwrite: bool
    """Replace out_file."""

    def __post_init__(self) -> None:
        require(bool(self.results), "results", self.results, "one directory or more")


@entry_point("glue_zip", SubmissionConfig)
def main(config: SubmissionConfig) -> None:
    """Pack the test predictions of all GLUE tasks into one archive for https://gluebenchmark.com/submit.

        bert-pretrain glue-zip results=[runs/finetune] out_file=glue.zip

    Takes of each task the seed with the best score on the dev set. The archive has all 11 files, each checked against
    the size of its test set.
    """
    out_file = Path(config.out_file)
    check_new_file(out_file, "out_file", config.overwrite)
    chosen = best_seeds([folder for name in config.results for folder in result_folders(Path(name))])
    missing = [
        f"{task} ({name})" for name, (task, _) in FILES.items() if task not in chosen or not _file(chosen[task], name)
    ]
    if missing:
        raise ConfigError(
            f"results {', '.join(config.results)} hold no test predictions of {', '.join(missing)}; make them with "
            "bert-pretrain finetune task=NAME predict_test=true"
        )
    texts = {name: _checked(_file(chosen[task], name), rows) for name, (task, rows) in FILES.items()}
    try:
        with new_file(out_file) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in texts.items():
                archive.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED)
    except OSError as error:
        raise as_config_error(error) from None
    for name, (task, rows) in FILES.items():
        print(f"{name:<12}{rows:>8,} rows of {chosen[task]}")
    print(f"wrote {out_file}")


def result_folders(folder: Path) -> list[Path]:
    """``folder`` itself or the folders in it that hold a ``results.json``. Raises ``ConfigError`` if none does."""
    found = [
        path.parent for path in (folder / "results.json", *sorted(folder.glob("*/results.json"))) if path.is_file()
    ]
    if not found:
        raise ConfigError(
            f"results has {str(folder)!r}, where no results.json is; give an out_dir of bert-pretrain finetune"
        )
    return found


def best_seeds(folders: list[Path]) -> dict[str, Path]:
    """By task: the folder of the seed with the best main metric on the dev set.

    Raises ``ConfigError`` if two folders have the same task.
    """
    known = {task for task, _ in FILES.values()}
    seeds: dict[str, Path] = {}
    for folder in folders:
        path = folder / "results.json"
        try:
            result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            task, metric = result["task"], result["options"]["task"]["metrics"][0]
            seed = max(result["runs"], key=lambda row: row[metric])["seed"]
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise ConfigError(f"{path} is no result of bert-pretrain finetune ({error!r}); give another") from None
        if task not in known:
            continue
        if task in seeds:
            earlier = seeds[task].parent
            raise ConfigError(f"results has two folders of {task}, {earlier} and {folder}; name one of each task")
        seeds[task] = folder / f"seed_{seed}"
    return seeds


def _file(seed: Path, name: str) -> Path | None:
    return next(iter(sorted(seed.glob(f"test*/{name}"))), None)


def _checked(path: Path | None, rows: int) -> str:
    """The content of a file with predictions. Raises ``ConfigError`` unless it has ``rows`` rows in their order."""
    assert path is not None
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    numbers = [line.partition("\t")[0] for line in lines[1:]]
    if lines[:1] != ["index\tprediction"] or numbers != [str(number) for number in range(rows)]:
        raise ConfigError(
            f"{path} has {len(numbers):,} predictions in order; GLUE's test set has {rows:,}: predict its file"
        )
    return text
