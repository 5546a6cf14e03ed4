"""The engine runs the tasks of a stage, each exactly once, even when the run is interrupted and started again.

A task reads what earlier stages wrote, writes its own files and returns its counts. Whoever runs it then writes the
counts to ``<stage folder>/<name>.done.json``. A task with that file is finished and is not run again.

:class:`Engine` runs the tasks one by one in this process. :class:`data_prep.engine.cluster.Cluster` sends them to
``dask.distributed``; only that module imports dask, which takes longer than preparing a small corpus.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bert_pretrain.errors import ConfigError
from bert_pretrain.files.retry import read_error, read_patiently
from data_prep.engine.out_dir import read_record, write_record

Record = dict[str, Any]
"""Counts of a task or a stage, as JSON."""


class TasksLostError(ConfigError):
    """Workers died; the corpus and the options are not at fault. Finished tasks are kept for the next run."""


@dataclass(frozen=True)
class Task:
    """One task of a stage."""

    name: str
    """Unique in its stage; also names the files that the task writes."""
    size: int
    """For the progress bar, in the unit of the stage."""
    run: Callable[[], Record]
    """A picklable function, such as ``functools.partial``."""


class Engine:
    """Runs the tasks of a stage one after the other in this process."""

    def check_folder(self, folder: Path) -> None:
        """Raise ``ConfigError`` unless every worker can see ``folder``, an absolute path."""

    def run(self, stage: str, tasks: Sequence[Task], folder: Path, unit: str) -> list[Record]:
        """Run the tasks that have no record in ``folder``; return the records of all tasks, in order.

        Raises the first ``ConfigError`` or ``OSError`` of a task. Finished tasks keep their records.
        """
        folder.mkdir(parents=True, exist_ok=True)
        paths = [_record_path(folder, task) for task in tasks]
        records = {number: read_record(path) for number, path in enumerate(paths) if path.exists()}
        waiting = iter([number for number in range(len(tasks)) if number not in records])
        with tqdm(
            total=sum(task.size for task in tasks), unit=unit, unit_scale=True, desc=stage, disable=None, leave=False
        ) as progress:
            progress.update(sum(tasks[number].size for number in records))
            for number, record in self._completed(tasks, folder, waiting):
                records[number] = record
                progress.update(tasks[number].size)
        return [records[number] for number in range(len(tasks))]

    def _completed(self, tasks: Sequence[Task], folder: Path, waiting: Iterator[int]) -> Iterator[tuple[int, Record]]:
        """Run the tasks with the numbers ``waiting``; yield number and record of each as it finishes."""
        for number in waiting:
            yield number, run_task(tasks[number], folder)


def run_task(task: Task, folder: Path) -> Record:
    """Run one task, write its record to ``folder`` and return it as read back from JSON."""
    what = f"a file of task {task.name}"

    def attempt() -> Record:
        try:
            return task.run()
        except (OSError, RuntimeError) as error:  # HDF5 hides outages in the latter
            found = read_error(error, what, "")
            raise found if isinstance(found, OSError) else error from None

    record = read_patiently(attempt, what, "", ())
    write_record(_record_path(folder, task), record)
    return dict(json.loads(json.dumps(record)))


def _record_path(folder: Path, task: Task) -> Path:
    return folder / f"{task.name}.done.json"
