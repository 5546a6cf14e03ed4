"""The engine: parts of a stage on ``dask.distributed``, each done once, whatever stops in between.

A stage is a function and a list of jobs. A job reads what earlier stages wrote, writes its own files, and returns
what it counted. That record, ``<stage>/<name>.done.json``, is written last, by the worker: where it exists, the part
is whole and is not done again. A worker that is killed loses the part that it was at; dask starts another worker and
gives the part to it.

Without ``scheduler`` a cluster of this machine's cores is started, with one process a worker and a limit on its memory.
With ``scheduler=tcp://host:port`` the parts run on a cluster that exists; it has to see ``out_dir`` and the corpus
under the same paths, and to have this package installed.
"""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from distributed import Client, LocalCluster, as_completed
from distributed.scheduler import KilledWorker
from tqdm import tqdm

from bert_pretrain.errors import ConfigError, require
from data_prep.out_dir import read_json, write_json

_SECONDS_TO_CONNECT = 5
_IN_FLIGHT = 3  # jobs a worker: one runs, the others wait at its door


@dataclass
class EngineConfig:
    """The options of the group ``engine`` in ``configs/prepare.yaml``. None of them changes the result."""

    workers: int | None
    scheduler: str | None
    worker_memory_gb: float
    dashboard: str

    def __post_init__(self) -> None:
        require(self.workers is None or self.workers >= 1, "engine.workers", self.workers, "null, or 1 or more")
        require(self.worker_memory_gb >= 0.5, "engine.worker_memory_gb", self.worker_memory_gb, "0.5 or more")
        known = self.scheduler is None or "://" in self.scheduler
        require(known, "engine.scheduler", self.scheduler, "null, or an address such as tcp://host:8786")


class Job(Protocol):
    """One part of a stage: picklable, with a name that no other part of the stage has and a size for the progress."""

    @property
    def name(self) -> str:
        """Unique in its stage; names the part's files."""

    @property
    def size(self) -> int:
        """The work in it, in the unit of the stage."""


class Engine:
    """Runs the parts of stages on the workers of one cluster."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._workers = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))

    def check_folder(self, folder: Path) -> None:
        """Raise ``ConfigError`` unless every worker sees ``folder``, an absolute path."""
        seen = self._client.run(os.path.isdir, str(folder))
        blind = [address for address, there in seen.items() if not there]
        if blind:
            raise ConfigError(
                f"engine.scheduler: the worker {blind[0]} does not see {folder}; the workers of a cluster need "
                "out_dir and the corpus on a file system that they share with this machine"
            )

    def run(
        self,
        stage: str,
        function: Callable[[Any], dict[str, Any]],
        jobs: Sequence[Any],
        folder: Path,
        unit: str,
    ) -> list[dict[str, Any]]:
        """Run ``function(job)`` for every job that has no record in ``folder`` yet; the records, in order of the jobs.

        Sizes count in ``unit``. Raises the first ``ConfigError`` or ``OSError`` of a part; the others are left whole.
        """
        folder.mkdir(parents=True, exist_ok=True)
        records: dict[int, dict[str, Any]] = {}
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
        self, function: Callable[[Any], dict[str, Any]], jobs: Sequence[Any], folder: Path, waiting: Iterator[int]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Keep a few jobs a worker in flight, so that the scheduler's memory does not grow with the corpus."""
        numbers: dict[Any, int] = {}
        running = as_completed([])

        def submit() -> None:
            number = next(waiting, None)
            if number is not None:
                future = self._client.submit(_run_part, function, jobs[number], folder, pure=False)
                numbers[future] = number
                running.add(future)

        for _ in range(_IN_FLIGHT * self._workers):
            submit()
        for future in running:
            number = numbers.pop(future)
            try:
                record = future.result()
            except KilledWorker:
                raise ConfigError(
                    f"part {jobs[number].name} of {folder.name} ended {future.key!r}'s workers again and again, most "
                    "likely for want of memory; the parts that were finished are kept: run again with a larger "
                    "engine.worker_memory_gb or a smaller piece_mb"
                ) from None
            submit()
            yield number, record


def _run_part(function: Callable[[Any], dict[str, Any]], job: Any, folder: Path) -> dict[str, Any]:
    record = function(job)
    write_json(_record_path(folder, job), record)
    return dict(json.loads(json.dumps(record)))


def _record_path(folder: Path, job: Job) -> Path:
    return folder / f"{job.name}.done.json"


@contextlib.contextmanager
def open_engine(config: EngineConfig, most_parts: int) -> Iterator[Engine]:
    """A cluster of this machine, of at most ``most_parts`` workers, or the user's; its dashboard's address is printed.

    Where there is one part only, the worker is a thread of this process.

    Raises ``ConfigError`` where the user's cluster does not answer or has no workers.
    """
    if config.scheduler is None:
        workers = max(1, min(config.workers or len(os.sched_getaffinity(0)), most_parts))
        in_process = most_parts <= 1  # a corpus of one piece is not worth a process
        # workers share the cores one each: a tokenizer with threads of its own would only get in their way
        environment = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        with (
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=not in_process,
                memory_limit=0 if in_process else int(config.worker_memory_gb * 1e9),
                dashboard_address=config.dashboard,
                worker_dashboard_address=None,
                silence_logs=logging.CRITICAL,
                **({} if in_process else {"env": environment}),
            ) as cluster,
            Client(cluster) as client,
        ):
            print(f"{workers} worker{'s' * (workers > 1)}; dashboard {client.dashboard_link}", flush=True)
            yield Engine(client)
        return
    try:
        client = Client(config.scheduler, timeout=_SECONDS_TO_CONNECT)
    except (OSError, ValueError) as error:
        raise ConfigError(f"engine.scheduler is {config.scheduler!r}, where no scheduler answers ({error})") from None
    with client:
        workers = len(client.scheduler_info(n_workers=-1)["workers"])
        if workers == 0:
            raise ConfigError(f"engine.scheduler {config.scheduler} has no workers; start some: dask worker ADDRESS")
        print(f"{workers} workers of {config.scheduler}; dashboard {client.dashboard_link}", flush=True)
        yield Engine(client)
