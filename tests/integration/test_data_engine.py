"""The engine with real processes: several workers, kills at any time, a full disk, a user's cluster."""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import dask
import pytest
from distributed import Client

from bert_pretrain.data.shard_directory import read_manifest
from data_prep import preparation, prepare
from data_prep.engine.cluster import open_local_cluster
from data_prep.engine.local import Task, TasksLostError
from tests.conftest import HANGS, ROOT
from tests.data_prep.test_prepare import WORDS

OPTIONS = [
    "corpus=text",
    "sequence_lengths=[32,64]",
    "vocab_size=200",
    "samples_per_shard=100",
    "heldout_fraction=0.1",
    "dupe_factor=2",
    "piece_mb=0.01",
]


def command(texts: Path, out_dir: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "data_prep.prepare", *OPTIONS, f"corpus.path={texts}", f"out_dir={out_dir}", *more]


def run(*arguments: str, limit: int | None = None) -> subprocess.CompletedProcess:
    """Run a command that may write files of at most ``limit`` bytes."""

    def prepare() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=HANGS, preexec_fn=prepare)


def manifests(out_dir: Path) -> list[str]:
    """The manifests, which hold all that the report shows of the text, without the seconds of the stages."""
    return [re.sub(r'"seconds": [\d.]+', "", (out_dir / name / "manifest.json").read_text()) for name in ("32", "64")]


def shards(out_dir: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out_dir)): path.read_bytes() for path in sorted(out_dir.rglob("*.hdf5"))}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 documents, 10 of them duplicates, in one file of several pieces."""
    rng = random.Random(3)
    path = tmp_path_factory.mktemp("texts") / "a.txt"
    blocks = []
    for _ in range(150):
        sentences = [" ".join(rng.choices(WORDS, k=rng.randint(4, 14))).capitalize() + "." for _ in range(12)]
        blocks.append("\n".join(" ".join(sentences[start : start + 4]) for start in range(0, 12, 4)))
    path.write_text("\n\n".join(blocks + blocks[:10]) + "\n")
    return path


@pytest.fixture(scope="module")
def whole(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one worker without interruption."""
    out_dir = tmp_path_factory.mktemp("whole") / "out"
    done = run(*command(texts, out_dir, "engine.workers=1"))
    assert done.returncode == 0, done.stderr
    assert "exact duplicates 10" in done.stdout
    return out_dir


def test_killed_anywhere_and_with_more_workers_the_bytes_are_the_same(texts: Path, whole: Path, tmp_path: Path) -> None:
    """The whole process group is killed twice, and goes on with another number of workers."""
    out_dir = tmp_path / "out"
    for parts in (5, 40):
        process = subprocess.Popen(
            command(texts, out_dir, "engine.workers=2"),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while (
            len(list(out_dir.rglob("*.done.json"))) < parts and process.poll() is None and time.monotonic() < deadline
        ):
            time.sleep(0.005)
        assert process.poll() is None, "it finished before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finished = {path: path.stat().st_mtime_ns for path in out_dir.rglob("*.done.json") if path.parent.name == "text"}
    assert len(finished) > 5
    done = run(*command(texts, out_dir, "engine.workers=3"))
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # no task was run twice
    assert len(shards(whole)) > 10
    assert shards(out_dir) == shards(whole)
    assert "largest_clusters" in manifests(whole)[0]
    assert manifests(out_dir) == manifests(whole)


def test_an_append_killed_anywhere_and_with_more_workers(texts: Path, whole: Path, tmp_path: Path) -> None:
    """The set stays as it was until the append is whole; then it has the bytes of one worker without interruption."""
    more = tmp_path / "more.txt"
    old = texts.read_text().strip().split("\n\n")
    more.write_text("\n\n".join([" ".join(reversed(text.split())) for text in old[:100]] + old[:30]) + "\n")
    once, killed = (Path(shutil.copytree(whole, tmp_path / name)) for name in ("once", "killed"))
    done = run(*command(more, once, "append=true", "engine.workers=1"))
    assert done.returncode == 0, done.stderr
    assert "exact duplicates 30" in done.stdout
    before, tasks = shards(whole), len(list(whole.rglob("*.done.json")))
    for parts in (4, 30):
        append = command(more, killed, "append=true", "engine.workers=2")
        process = subprocess.Popen(
            append, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while len(list(killed.rglob("*.done.json"))) < tasks + parts and time.monotonic() < deadline:
            assert process.poll() is None, "it finished before it could be killed"
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert {name: text for name, text in shards(killed).items() if not name.startswith("corpus")} == before
        assert read_manifest(killed / "32") == read_manifest(whole / "32")
    done = run(*command(more, killed, "append=true", "engine.workers=3"))
    assert done.returncode == 0, done.stderr
    assert before.items() < shards(killed).items()
    assert shards(killed) == shards(once)


def test_a_user_s_cluster_with_a_killed_worker(texts: Path, whole: Path, tmp_path: Path) -> None:
    """A separate scheduler with two workers, one of which is killed during the run."""
    address = tmp_path / "address.json"
    dask = [
        sys.executable,
        "-m",
        "distributed.cli.dask_scheduler",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--no-dashboard",
    ]
    worker = [
        sys.executable,
        "-m",
        "distributed.cli.dask_worker",
        "--nthreads",
        "1",
        "--no-dashboard",
        "--nworkers",
        "2",
    ]
    pids = tmp_path / "pids"
    processes = []
    try:
        for start in (dask, worker):
            scheduler_file = ["--scheduler-file", str(address)]
            processes.append(
                subprocess.Popen(
                    [*start, *scheduler_file],
                    cwd=ROOT,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )
        deadline = time.monotonic() + 60
        while not address.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        found = json.loads(address.read_text())["address"]
        with Client(found, timeout=HANGS) as client:
            client.wait_for_workers(2, timeout=HANGS)
            pids.write_text("\n".join(map(str, client.run(os.getpid).values())))
        running = subprocess.Popen(
            command(texts, tmp_path / "out", f"engine.scheduler={found}"),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while len(list((tmp_path / "out").rglob("*.done.json"))) < 3 and running.poll() is None:
            time.sleep(0.005)
        os.kill(int(pids.read_text().splitlines()[0]), signal.SIGKILL)
        out, error = running.communicate(timeout=HANGS)
        assert running.returncode == 0, error
        assert f"2 workers of {found}" in out
        assert shards(tmp_path / "out") == shards(whole)
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk(texts: Path, whole: Path, tmp_path: Path, workers: int) -> None:
    """One error message; finished tasks are kept, and the next run continues from them."""
    out_dir = tmp_path / "out"
    full = run(*command(texts, out_dir, f"engine.workers={workers}"), limit=14_000)
    assert full.returncode == 2, full.stderr
    failed = (
        f"error: out_dir {out_dir}: writing failed (File too large); finished parts are kept: run the command again"
    )
    assert full.stderr.strip().splitlines()[-1] == failed
    before = {path: path.stat().st_mtime_ns for path in out_dir.rglob("*.done.json")}
    assert len(before) > 5
    done = run(*command(texts, out_dir, "engine.workers=1"))
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in before if path.parent.name == "text"}.items() <= before.items()
    assert shards(out_dir) == shards(whole)


def kill_the_worker(folder: Path) -> dict:
    while not (folder / "good.done.json").exists():
        time.sleep(0.01)
    os._exit(1)


def test_a_task_that_kills_every_worker(tmp_path: Path) -> None:
    """One error message names the task, and the records of the others are kept."""
    folder = tmp_path / "stage"
    tasks = [Task("bad", 1, partial(kill_the_worker, folder)), Task("good", 1, dict)]
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        open_local_cluster(2, 1.0, "127.0.0.1:0") as cluster,
        pytest.raises(TasksLostError, match="task bad of stage stage killed every worker"),
    ):
        cluster.run("stage", tasks, folder, " tasks")
    assert (folder / "good.done.json").exists()


def test_lost_workers_lose_no_finished_task(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost(*_: object) -> None:
        raise TasksLostError("task 7 killed every worker that ran it")

    monkeypatch.setattr(preparation, "find_repeats", lost)
    arguments = command(texts, tmp_path / "out", "engine.workers=1")
    monkeypatch.setattr(sys, "argv", arguments[2:])
    with pytest.raises(SystemExit):
        prepare.main()
    assert "killed every worker" in capsys.readouterr().err
    assert len(list((tmp_path / "out" / "corpus" / "text").glob("*.done.json"))) > 5
