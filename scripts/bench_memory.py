"""Peak memory of a preparation, by corpus size and stage, on random documents, some of which are near duplicates.

    python scripts/bench_memory.py TEXT_DIR DUMP SCRATCH_DIR RESULT.json MEGABYTES...

Also extrapolates to English Wikipedia, 20 GB of clean text, assuming that each stage takes the same CPU time a
megabyte for every size and number of workers. Wikitext takes much longer to read than plain text, so that stage is
measured on DUMP, a part of a pages-articles dump. One process trains the tokenizer, on ``vocab_text_mb`` at most.

The documents are no copies of TEXT_DIR, only their words are from there: a corpus that repeats itself hides what grows
with the number of different documents and words.
"""

import contextlib
import json
import multiprocessing
import re
import resource
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from results_file import write_result

from data_prep.text.duplicates import BANDS, ROWS, TextPart, band_keys, divide_keys, find_repeated_documents

WORKERS = 1  # in the command's own process, so that its memory is that of all stages
VOCAB_MEGABYTES = 10  # of text to train the tokenizer on
WIKIPEDIA_MEGABYTES = 20_000
CORES = (2, 32, 256)
_POLLS_PER_DISK_CHECK = 20
_WORDS = 2_000_000  # different ones
_MEDIAN_WORDS = 200  # of a document
_DOCUMENTS_A_PART = 10_000  # where only the search for duplicates is measured
_DOCUMENTS = (10_000, 100_000, 400_000, 800_000, 1_600_000)
_STAGE = re.compile(r"^\[\d+\] (.*) \.\.\.$", re.MULTILINE)


def random_words(texts: list[Path]) -> np.ndarray:
    """The words of ``texts``, the commonest first, and behind them joined pairs of these: ``_WORDS`` words in all."""
    counts = Counter(word for path in texts for word in re.findall(r"[a-z]+", path.read_text("utf-8-sig").lower()))
    words = [word for word, _ in counts.most_common()]
    words += [words[number % 997] + words[number // 997] for number in range(_WORDS - len(words))]
    return np.array(words, dtype=object)


def make_corpus(words: np.ndarray, folder: Path, megabytes: int) -> float:
    """Write random documents, their words by Zipf's law, up to ``megabytes``; return the size reached.

    Of 100 documents, one is a copy of an earlier one, and three are copies with 1 % of the words changed.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(megabytes)
    size = number = 0
    recent: list[np.ndarray] = []
    while size < megabytes * 1e6:
        texts: list[str] = []
        while sum(map(len, texts)) < 10e6:
            length = int(rng.lognormal(np.log(_MEDIAN_WORDS), 1)) + 20
            ranks = np.exp(rng.random(length) * np.log(_WORDS)).astype(np.int64) - 1
            kind = rng.integers(100)
            if kind < 4 and recent:
                ranks = recent[rng.integers(len(recent))]
                changed = rng.random(len(ranks)) < (0.01 if kind else 0)
                ranks = np.where(changed, rng.integers(_WORDS, size=len(ranks)), ranks)
            recent = [*recent[-999:], ranks]
            texts.append(_document(words[ranks].tolist()))
        content = "\n\n".join(texts).encode()
        (folder / f"{number:05d}.txt").write_bytes(content)
        size += len(content)
        number += 1
    return size / 1e6


def _document(words: list[str]) -> str:
    """Sentences of 6 to 29 words, four a paragraph; of the same lengths for as many words."""
    rng = np.random.default_rng(len(words))
    ends = np.cumsum([0, *rng.integers(6, 30, size=len(words) // 6 + 1)]).tolist()
    sentences = [" ".join(words[start:end]).capitalize() + "." for start, end in pairwise(ends) if start < len(words)]
    return "\n".join(" ".join(sentences[place : place + 4]) for place in range(0, len(sentences), 4))


@dataclass
class Usage:
    """What a command used: peak memory and CPU time by stage as printed."""

    peaks: dict[str, int]
    processor_seconds: dict[str, float]
    seconds: float
    most_bytes: int


def bytes_on_disk(folder: Path) -> int:
    """The size of all files; those removed meanwhile do not count."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def watch(command: list[str], out_dir: Path) -> Usage:
    """Run a command, polling its processes ten times a second; its output is written to a file beside ``out_dir``."""
    log = out_dir.with_suffix(".log")
    start = time.perf_counter()
    peaks: dict[str, int] = {}
    used: dict[int, float] = {}
    stages: dict[str, float] = {}
    most_bytes = polls = 0
    with log.open("w") as output:
        process = psutil.Popen(command, stdout=output)
    while process.poll() is None:
        stage = (_STAGE.findall(log.read_text()) or ["start-up"])[-1]
        for each in [process, *process.children(recursive=True)]:
            try:
                peak, times = each.memory_info().rss, each.cpu_times()
            except psutil.NoSuchProcess:
                continue
            peaks[stage] = max(peaks.get(stage, 0), peak)
            now = times.user + times.system
            stages[stage] = stages.get(stage, 0.0) + now - used.get(each.pid, 0.0)
            used[each.pid] = now
        polls += 1
        if polls % _POLLS_PER_DISK_CHECK == 0:
            most_bytes = max(most_bytes, bytes_on_disk(out_dir))
        time.sleep(0.1)
    if process.returncode != 0:
        raise RuntimeError(f"the command failed with status {process.returncode}")
    return Usage(peaks, stages, time.perf_counter() - start, most_bytes)


def measure(words: np.ndarray, scratch: Path, megabytes: int) -> dict[str, Any]:
    """Measure one corpus size."""
    size = make_corpus(words, scratch / "texts", megabytes)
    options = ["corpus=text", f"corpus.path={scratch / 'texts'}", f"out_dir={scratch / 'out'}"]
    options += [f"vocab_text_mb={VOCAB_MEGABYTES}", f"engine.workers={WORKERS}"]
    command = [sys.executable, "-m", "data_prep.prepare", *options]
    found = watch(command, scratch / "out")
    disk = bytes_on_disk(scratch / "out")
    stages = {row["stage"]: row for row in json.loads((scratch / "out/manifest.json").read_text())["stages"]}
    shutil.rmtree(scratch)
    return {
        "megabytes": round(size),
        "documents": stages["text"]["documents"],
        "near_duplicates": stages["repeats"]["near_duplicates"],
        "seconds": round(found.seconds, 1),
        "peak_mb": round(max(found.peaks.values()) / 1e6),
        "megabytes_on_disk_at_most": round(max(disk, found.most_bytes) / 1e6),
        "megabytes_on_disk_at_the_end": round(disk / 1e6),
        "peak_mb_by_stage": {stage: round(value / 1e6) for stage, value in found.peaks.items()},
        "processor_seconds": {stage: round(value, 2) for stage, value in found.processor_seconds.items()},
    }


def duplicates_memory(documents: int, folder: Path) -> int:
    """Peak MB of a process that looks for duplicates among random documents, of which one in 100 is one."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(documents)
    parts = []
    for first in range(0, documents, _DOCUMENTS_A_PART):
        signatures = rng.integers(1 << 32, size=(_DOCUMENTS_A_PART, BANDS * ROWS), dtype=np.uint32)
        signatures[: _DOCUMENTS_A_PART // 100] = signatures[-_DOCUMENTS_A_PART // 100 :]
        parts.append(TextPart(folder / f"{first:08d}.txt", "", first, first, _DOCUMENTS_A_PART, _DOCUMENTS_A_PART, 0))
        keys: dict[str, Any] = {
            "documents": rng.integers(1 << 63, size=_DOCUMENTS_A_PART, dtype=np.uint64),
            "signatures": signatures,
        }
        sizes = np.ones(_DOCUMENTS_A_PART, dtype=np.int64)
        np.savez(parts[-1].keys, allow_pickle=False, sizes=sizes, bands=band_keys(signatures), **keys)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        peak = pool.apply(_look_for_duplicates, (parts, folder))
    shutil.rmtree(folder)
    return int(peak)


def _look_for_duplicates(parts: list[TextPart], folder: Path) -> int:
    """Peak MB of this process."""
    for share in divide_keys(parts, folder, len(parts) * _DOCUMENTS_A_PART * BANDS):
        find_repeated_documents(share, 0.8)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)


def wikitext_seconds(dump: Path, scratch: Path) -> float:
    """CPU seconds to read a megabyte of clean text from a dump."""
    command = [sys.executable, "-m", "data_prep.prepare", "corpus=wikipedia", f"corpus.path={dump}"]
    command += [f"out_dir={scratch / 'wikipedia'}", "vocab_size=1000", "engine.workers=1"]
    found = watch(command, scratch / "wikipedia")
    (stage, *_) = json.loads((scratch / "wikipedia" / "manifest.json").read_text())["stages"]
    return found.processor_seconds["text"] / stage["characters"] * 1e6


def project(row: dict[str, Any], text_seconds: float) -> dict[str, Any]:
    """Hours and disk space for Wikipedia, by the rates of one row and ``text_seconds`` a megabyte to read wikitext."""
    core_seconds = {name: seconds / row["megabytes"] for name, seconds in row["processor_seconds"].items()}
    core_seconds["text"] = text_seconds
    alone = core_seconds.pop("tokenizer") * row["megabytes"] / VOCAB_MEGABYTES * 500  # one process, at most 500 MB
    del core_seconds["start-up"]
    hours = {cores: (sum(core_seconds.values()) * WIKIPEDIA_MEGABYTES / cores + alone) / 3600 for cores in CORES}
    return {
        "core_seconds_a_megabyte": {name: round(value, 4) for name, value in core_seconds.items()},
        "hours_by_cores": {cores: round(value, 2) for cores, value in hours.items()},
        "gigabytes_on_disk": [
            round(row[f"megabytes_on_disk_at_{when}"] / row["megabytes"] * WIKIPEDIA_MEGABYTES / 1000)
            for when in ("most", "the_end")
        ],
    }


def main() -> None:
    """Measure every size and write the results."""
    texts, dump = sorted(Path(sys.argv[1]).rglob("*.txt")), Path(sys.argv[2])
    scratch, result = Path(sys.argv[3]), Path(sys.argv[4])
    words = random_words(texts)
    rows = [measure(words, scratch / size, int(size)) for size in sys.argv[5:]]
    projected = project(rows[-1], wikitext_seconds(dump, scratch))
    note = f"The last row extrapolated to {WIKIPEDIA_MEGABYTES:,} MB: hours by cores {projected['hours_by_cores']}, "
    most, end = projected["gigabytes_on_disk"]
    note += f"{most} GB on disk at most, {end} at the end; core seconds a MB {projected['core_seconds_a_megabyte']}."
    peaks = {f"{count:,}": f"{duplicates_memory(count, scratch / 'keys')} MB" for count in _DOCUMENTS}
    note += f" Peak of the search for duplicates alone, by number of documents: {peaks}."
    flat = [{name: str(value) if isinstance(value, dict) else value for name, value in row.items()} for row in rows]
    write_result(result, "Peak memory by size of the corpus, near duplicates dropped, one worker", flat, note)


if __name__ == "__main__":
    main()
