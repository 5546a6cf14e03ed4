"""The engine: parts of a stage, each done once, whatever stops in between.

A stage is a function and a list of jobs. A job reads what earlier stages wrote, writes its own files, and returns
what it counted. That record, ``<stage>/<name>.done.json``, is written last, by whoever did the part: where it exists,
the part is whole and is not done again.

:class:`Engine` does one part after the other in this process; :class:`data_prep.engine.cluster.Cluster` gives them to
the workers of ``dask.distributed``, which is loaded only there, since that takes longer than preparing a small corpus.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from bert_pretrain.errors import ConfigError
from data_prep.engine.out_dir import read_json, write_json

Record = dict[str, Any]


class PartsLostError(ConfigError):
    """The workers were at fault, not the corpus or its options: what was finished serves the next run."""


class Job(Protocol):
    """One part of a stage: picklable, with a name that no other part of the stage has and a size for the progress."""

    @property
    def name(self) -> str:
        """Unique in its stage; names the part's files."""

    @property
    def size(self) -> int:
        """The work in it, in the unit of the stage."""


class Engine:
    """Runs the parts of stages, one after the other, in this process."""

    def check_folder(self, folder: Path) -> None:
        """Raise ``ConfigError`` unless whoever does the parts sees ``folder``, an absolute path."""

    def run(
        self, stage: str, function: Callable[[Any], Record], jobs: Sequence[Any], folder: Path, unit: str
    ) -> list[Record]:
        """Run ``function(job)`` for every job that has no record in ``folder`` yet; the records, in order of the jobs.

        Sizes count in ``unit``. Raises the first ``ConfigError`` or ``OSError`` of a part; the others are left whole.
        """
        folder.mkdir(parents=True, exist_ok=True)
        records: dict[int, Record] = {}
        for number, job in enumerate(jobs):
            path = _record_path(folder, job)
            if path.exists():
                records[number] = read_json(path)
        waiting = iter([number for number in range(len(jobs)) if number not in records])
        with tqdm(
            total=sum(job.size for job in jobs), unit=unit, unit_scale=True, desc=stage, disable=None, leave=False
        ) as progress:
            progress.update(sum(jobs[number].size for number in records))
            for number, record in self._completed(function, jobs, folder, waiting):
                records[number] = record
                progress.update(jobs[number].size)
        return [records[number] for number in range(len(jobs))]

    def _completed(
        self, function: Callable[[Any], Record], jobs: Sequence[Any], folder: Path, waiting: Iterator[int]
    ) -> Iterator[tuple[int, Record]]:
        """The numbers of the parts that are ``waiting``, as they get done, and their records."""
        for number in waiting:
            yield number, run_part(function, jobs[number], folder)


def run_part(function: Callable[[Any], Record], job: Any, folder: Path) -> Record:
    """Do one part and note it."""
    record = function(job)
    write_json(_record_path(folder, job), record)
    return dict(json.loads(json.dumps(record)))


def _record_path(folder: Path, job: Job) -> Path:
    return folder / f"{job.name}.done.json"
