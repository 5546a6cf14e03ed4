"""Peak memory of every process of a preparation, for corpora of several sizes made by repeating the same texts.

    python scripts/bench_memory.py TEXT_DIR DUMP SCRATCH_DIR RESULT.json MEGABYTES...

Also says what that makes for English Wikipedia, 20 GB of clean text: the seconds of a stage times workers, over the
megabytes of text, are taken to be the same for every size and number of workers. Wikitext takes far longer to read
than plain text: that stage is measured on DUMP, a piece of a pages-articles dump. The tokenizer is trained in one
process, on ``vocab_text_mb`` at most.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from results_file import write_result

WORKERS = 2
WIKIPEDIA_MEGABYTES = 20_000
CORES = (2, 32, 256)


def make_corpus(texts: list[Path], folder: Path, megabytes: int) -> float:
    """Copies of the texts until there are ``megabytes``; returns how many there are."""
    folder.mkdir(parents=True)
    size = number = 0
    while size < megabytes * 1e6:
        content = texts[number % len(texts)].read_bytes()
        (folder / f"{number:05d}.txt").write_bytes(content)
        size += len(content)
        number += 1
    return size / 1e6


def watch(command: list[str]) -> tuple[dict[int, int], float]:
    """The largest resident set of each process (by id, the command's own first), and the seconds it took."""
    start = time.perf_counter()
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    peaks: dict[int, int] = {}
    while process.poll() is None:
        for each in [process, *process.children(recursive=True)]:
            try:
                peaks[each.pid] = max(peaks.get(each.pid, 0), each.memory_info().rss)
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.1)
    if process.returncode != 0:
        raise RuntimeError(f"ended with status {process.returncode}")
    return peaks, time.perf_counter() - start


def measure(texts: list[Path], scratch: Path, megabytes: int) -> dict[str, Any]:
    """One size."""
    size = make_corpus(texts, scratch / "texts", megabytes)
    options = ["corpus=text", "corpus.documents=file", f"corpus.path={scratch / 'texts'}", f"out_dir={scratch / 'out'}"]
    options += ["duplicates.exact=false", "duplicates.near=false", "vocab_text_mb=10", "sequence_lengths=[128,512]"]
    command = [sys.executable, "-m", "data_prep.prepare", *options, f"engine.workers={WORKERS}", "dupe_factor=5"]
    peaks, seconds = watch(command)
    own, *others = peaks.values()
    disk = sum(path.stat().st_size for path in (scratch / "out").rglob("*") if path.is_file())
    stages = json.loads((scratch / "out" / "128" / "manifest.json").read_text())["stages"]
    stages += json.loads((scratch / "out" / "512" / "manifest.json").read_text())["stages"][-1:]
    return {
        "megabytes": round(size),
        "seconds": round(seconds, 1),
        "peak_mb_of_the_command": round(own / 1e6),
        "peak_mb_of_a_worker": round(max(others) / 1e6),
        "megabytes_on_disk_at_the_end": round(disk / 1e6),
        "stage_seconds": {stage["stage"]: stage["seconds"] for stage in stages},
    }


def wikitext_seconds(dump: Path, scratch: Path) -> float:
    """Seconds of one core from a dump to a megabyte of clean text."""
    command = [sys.executable, "-m", "data_prep.prepare", "corpus=wikipedia", f"corpus.path={dump}"]
    command += [f"out_dir={scratch / 'wikipedia'}", "vocab_size=1000", "engine.workers=1"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (stage, *_) = json.loads((scratch / "wikipedia" / "manifest.json").read_text())["stages"]
    return stage["seconds"] / stage["characters"] * 1e6


def project(row: dict[str, Any], text_seconds: float) -> dict[str, Any]:
    """Hours and disk for Wikipedia's text by the rates of one row, and ``text_seconds`` a megabyte to read wikitext."""
    core_seconds = {name: seconds * WORKERS / row["megabytes"] for name, seconds in row["stage_seconds"].items()}
    core_seconds["text"] = text_seconds
    alone = core_seconds.pop("tokenizer") * row["megabytes"] / WORKERS * 50  # 500 MB at most, on one machine
    hours = {cores: (sum(core_seconds.values()) * WIKIPEDIA_MEGABYTES / cores + alone) / 3600 for cores in CORES}
    return {
        "core_seconds_a_megabyte": {name: round(value, 4) for name, value in core_seconds.items()},
        "hours_by_cores": {cores: round(value, 2) for cores, value in hours.items()},
        "gigabytes_on_disk": round(row["megabytes_on_disk_at_the_end"] / row["megabytes"] * WIKIPEDIA_MEGABYTES / 1000),
    }


def main() -> None:
    """Measure every size and write the rows down."""
    texts, dump = sorted(Path(sys.argv[1]).rglob("*.txt")), Path(sys.argv[2])
    scratch, result = Path(sys.argv[3]), Path(sys.argv[4])
    rows = [measure(texts, scratch / size, int(size)) for size in sys.argv[5:]]
    projected = project(rows[-1], wikitext_seconds(dump, scratch))
    note = f"For {WIKIPEDIA_MEGABYTES:,} MB of text by the last row: hours by cores {projected['hours_by_cores']}, "
    note += f"{projected['gigabytes_on_disk']} GB on disk; core seconds a MB {projected['core_seconds_a_megabyte']}."
    flat = [{**row, "stage_seconds": str(row["stage_seconds"])} for row in rows]
    write_result(result, "Peak memory by size of the corpus, 2 workers, 128 and 512, factor 5", flat, note)


if __name__ == "__main__":
    main()
