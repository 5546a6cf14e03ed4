"""Whether the numbers are those of commit 56623bf: shards, loss curves, a resumed checkpoint, NVLAMB.

    python scripts/prove_numbers.py check [REFERENCE.json] [--small]    # two minutes; --small: 20 s, without the demo
    python scripts/prove_numbers.py record OUT.json                     # a new reference, from the tree as it is
    python scripts/prove_numbers.py fixture DIRECTORY                   # a run stopped halfway, and its shards

The program is run from outside, on one thread, in float32. On a machine of the reference's kind (processor, vector
instructions, versions of the libraries) everything is compared bit for bit. On others, float results are compared
within the tolerances of ``compare_numbers.py``, and hashes of floats are left out. The demonstration's text is that of
the installed packages: with other versions of them its part is left out. Status 1 where something differs.
"""

import argparse
import hashlib
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from compare_numbers import all_differences
from nvlamb_numbers import measure_nvlamb
from repository_root import ROOT
from safetensors.numpy import load_file

from bert_pretrain.program import commit

REFERENCE = ROOT / "scripts/results/numbers_56623bf.json"
FIXTURE = ROOT / "tests/fixtures/run_56623bf"
PREPARE, PRETRAIN = "data_prep.prepare", "bert_pretrain.pretrain"
ENVIRONMENT = ("env", "OMP_NUM_THREADS=1", "MKL_NUM_THREADS=1", "OMP_WAIT_POLICY=passive")
DATASETS = (
    "input_ids", "input_mask", "segment_ids", "masked_lm_positions", "masked_lm_ids", "next_sentence_labels"
)  # fmt: skip
TIMED = ("tokens_per_second", "matrix_peak_share", "data_wait_share")
VECTOR_FLAGS = ("fma", "avx2", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "amx_tile", "sve")
SMALL_DATA = (
    "corpus=text", "sequence_lengths=[32]", "max_predictions=[5]", "vocab_size=500", "samples_per_shard=400",
    "heldout_fraction=0.1", "engine.workers=1",
)  # fmt: skip
DEMO_DATA = ("corpus=embedded", "sequence_lengths=[64]", "max_predictions=[20]", "vocab_size=4096", "engine.workers=1")
RUN = ("recipe=demo", "seed=42", "device=cpu", "precision.compute=fp32", "logging.every_steps=1")
# It passes the end of the first epoch. Without phi_min, a key bias (its gradient is rounding alone) stays small.
SMALL_RUN = (
    *RUN, "schedule.total_steps=20", "training.evaluate_every_steps=10", "checkpoint.every_steps=10",
    "logging.layers_every_steps=5", "model.vocab_size=500", "model.hidden_size=32", "model.intermediate_size=64",
    "model.max_position_embeddings=32", "model.hidden_dropout_prob=0.1", "model.attention_probs_dropout_prob=0.1",
    "data.sequence_length=32", "batch.global_batch_size=64", "batch.micro_batch_size=16", "optimizer.phi_min=null",
    "optimizer.lr=0.02", "schedule.warmup_proportion=0.2",
)  # fmt: skip
DEMO_RUN = (*RUN, "schedule.total_steps=200", "training.evaluate_every_steps=100", "checkpoint.every_steps=100")
Numbers = dict[str, Any]
say = partial(print, flush=True)


def run_module(module: str, *options: str) -> None:
    """Run an entry point of the program from the repository's root, showing one of its lines every ten seconds."""
    command = [*ENVIRONMENT, sys.executable, "-m", module, *options]
    lines, shown = [], time.monotonic()
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if time.monotonic() - shown > 10:
                say(f"    {line.rstrip()}")
                shown = time.monotonic()
    if process.returncode:
        sys.exit(f"{module} ended with status {process.returncode}. Its last lines:\n{''.join(lines[-20:])}")


def machine() -> Numbers:
    """What float results depend on beside the program: the processor and the libraries."""
    import torch

    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    fields = dict(re.findall(r"^(\w[\w ]*?)\s*: (.*)$", cpuinfo.split("\n\n")[0], re.MULTILINE))
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    kind = [platform.machine(), *(fields.get(key, "-") for key in ("vendor_id", "cpu family", "model"))]
    return {
        "processor": " ".join(kind),
        "vector_flags": " ".join(flag for flag in VECTOR_FLAGS if flag in flags),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        **{name: version(name) for name in ("torch", "numpy", "numba")},
    }


def write_corpus(path: Path) -> None:
    """A text that is always the same: words that follow each other by rule, and some of what cleaning drops."""
    draw = np.random.RandomState(7).random_sample  # this stream is frozen by numpy

    def below(limit: int) -> int:
        return int(draw() * limit)

    syllables = [a + b for a in "bdfgklmnprstv" for b in ("a", "e", "i", "o", "u", "é")]
    words = ["".join(syllables[below(len(syllables))] for _ in range(1 + below(3))) for _ in range(300)]
    following = [[below(300) for _ in range(4)] for _ in words]

    def sentence() -> str:
        at, chosen = below(300), []
        for _ in range(5 + below(9)):
            chosen.append(words[at])
            at = following[at][below(4)]
        extra = ("", "", "", "", " (e.g. Dr. Smith)", " 3.5", ", 1,024", " \N{EM DASH} it's")[below(8)]
        return " ".join(chosen).capitalize() + extra + (".", ".", "?", "!")[below(4)]

    documents = []
    for number in range(70):
        dropped = (f"Chapter {number}", "| 1 | 2.5 | 3 |", "All rights reserved. Privacy policy.", "12 34 56 78 90 1")
        paragraphs = [" ".join(sentence() for _ in range(2 + below(5))) for _ in range(3 + below(6))]
        documents.append("\n".join([dropped[below(4)], *paragraphs]))
    documents += [documents[3].upper(), documents[5] + "\n" + sentence()]  # an equal and a nearly equal document
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")


def shard_hashes(directory: Path) -> Numbers:
    """SHA-256 of the vocabulary, and of each data set of each shard as little-endian int32."""
    found: Numbers = {"vocab.txt": hashlib.sha256((directory / "tokenizer/vocab.txt").read_bytes()).hexdigest()}
    for path in sorted(directory.glob("*.hdf5")):
        with h5py.File(path, "r") as file:
            arrays = {name: np.ascontiguousarray(file[name][:], dtype="<i4") for name in DATASETS}
        found[path.name] = {"samples": len(arrays["input_ids"])}
        for name, array in arrays.items():
            found[path.name][name] = hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()
    return found


def columns(rows: Iterable[Numbers]) -> Numbers:
    """Rows of one kind as a list for each key, without times."""
    listed = list(rows)
    return {key: [row[key] for row in listed] for key in listed[0] if key not in TIMED} if listed else {}


def rows_of(run_dir: Path) -> list[Numbers]:
    """The rows of a run's metrics."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def numbers_of(run_dir: Path) -> Numbers:
    """What a finished run left: its rows, and a hash of its last weights."""
    rows = rows_of(run_dir)
    layers = [row for row in rows if "trust_ratio" in row]
    last = max((run_dir / "checkpoints").glob("step_????????"))
    weights = hashlib.sha256()
    for name, value in sorted(load_file(last / "model/model.safetensors").items()):
        weights.update(f"{name} {value.dtype} {value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    return {
        "training": columns(row for row in rows if "loss" in row),
        # The reference is older than the evaluation before the first step.
        "evaluations": columns(row for row in rows if "eval_loss" in row and row["step"] > 0),
        "layers_sha256": hashlib.sha256(json.dumps(layers, sort_keys=True).encode()).hexdigest(),
        "weights_sha256": weights.hexdigest(),
    }


def pretrained(work: Path, data: Path, options: Iterable[str]) -> Numbers:
    """The numbers of a run in ``work`` on the shards in ``data``, resumed where ``work`` holds its beginning."""
    run_module(PRETRAIN, *options, f"data.dir={data}", f"run_dir={work}")
    return numbers_of(work)


def measure_small(work: Path) -> Numbers:
    """Fixed corpus, its shards, and a small run on them."""
    say("fixed corpus: shards")
    write_corpus(work / "corpus.txt")
    run_module(PREPARE, f"out_dir={work / 'data'}", f"corpus.path={work / 'corpus.txt'}", *SMALL_DATA)
    say("small run: 20 steps on them")
    return {"shards": shard_hashes(work / "data"), "small": pretrained(work / "small", work / "data", SMALL_RUN)}


def measure_resumed(work: Path) -> Numbers:
    """The small run to its end from the checkpoint after step 10 that commit 56623bf wrote."""
    say("resumed run: from the fixture's step 10 to step 20")
    shutil.copytree(FIXTURE, work / "fixture")
    found = pretrained(work / "fixture/run", work / "fixture/data", SMALL_RUN)
    before = rows_of(FIXTURE / "run")
    if rows_of(work / "fixture/run")[: len(before)] != before:  # their times would be others
        sys.exit(f"the run in {FIXTURE.name} was not resumed from its checkpoint: its first rows were written anew")
    return found


def measure_demo(work: Path) -> Numbers:
    """The demonstration's shards as scripts/demo.sh makes them, and 200 steps of its recipe in one process."""
    say("demo: shards of the embedded corpus, about 45 seconds")
    data = work / "demo_data"
    run_module(PREPARE, f"out_dir={data}", *DEMO_DATA)
    manifest = json.loads((data / "manifest.json").read_text(encoding="utf-8"))
    texts = {source["name"]: source["version"] for source in manifest["sources"]}
    say("demo: 200 steps, about 40 seconds")
    return {"texts": texts, "shards": shard_hashes(data), "run": pretrained(work / "demo", data, DEMO_RUN)}


def measure(small_only: bool) -> Numbers:
    """All parts, in a temporary directory."""
    found: Numbers = {"machine": machine()}
    with tempfile.TemporaryDirectory(prefix="prove_numbers.") as folder:
        work = Path(folder)
        found |= measure_small(work)
        found["resumed"] = measure_resumed(work)
        say("NVLAMB: 50 updates by each kernel")
        found["nvlamb"] = measure_nvlamb(ROOT)
        if not small_only:
            found["demo"] = measure_demo(work)
    return found


def record(out: Path) -> None:
    """Write a reference, in the form of the other files of scripts/results."""
    if out.exists():
        sys.exit(f"{out} exists; give another file, or remove it first")
    found = measure(small_only=False)
    if found.pop("resumed") != found["small"]:
        sys.exit("the resumed run differs from the uninterrupted one; record on a machine of the fixture's kind")
    values = {f"NVLAMB, {kernel}: error": value["largest_error"] for kernel, value in found["nvlamb"].items()}
    for name, run in (("small run", found["small"]), ("demo", found["demo"]["run"])):
        values[f"{name}: loss of the last step"] = run["training"]["loss"][-1]
    result = {
        "what": "Reference numbers, compared by scripts/prove_numbers.py check",
        "date": time.strftime("%Y-%m-%d"),
        "device": f"one thread, {platform.machine()}, {found['machine']['torch_capability']}",
        "commit": commit(),
        "command": f"python scripts/prove_numbers.py record {out.name}",
        "rows": [{"what": name, "value": value} for name, value in values.items()],
        "numbers": found,
    }
    text = re.sub(r"\[[^][{}]*\]", lambda numbers: re.sub(r"\s+", " ", numbers[0]), json.dumps(result, indent=1))
    out.write_text(text + "\n", encoding="utf-8")
    say(f"{out} is written")


def check(reference: Path, small_only: bool) -> None:
    """Measure this tree, and compare."""
    expected = json.loads(reference.read_text(encoding="utf-8"))["numbers"]
    found = measure(small_only)
    here = found["machine"]
    changed = [f"{key} {here[key]}, not {value}" for key, value in expected["machine"].items() if here[key] != value]
    if changed:
        say(f"compared within tolerances, for this is another kind of machine: {'; '.join(changed)}")
    else:
        say("compared bit for bit, for this is a machine of the reference's kind")
    if not small_only and found["demo"]["texts"] != expected["demo"]["texts"]:
        say("demo: not compared, for the packages that its text is made of have other versions here")
    differences = all_differences(found, expected, exact=not changed)
    for difference in differences:
        say(f"DIFFERENT  {difference}")
    if differences:
        sys.exit(1)
    say("the numbers are those of the reference")


def write_fixture(directory: Path) -> None:
    """Write the small run as it is after step 10, with its shards, into ``directory``, relative to the repository."""
    directory.mkdir(parents=True)
    corpus, whole = directory / "corpus.txt", directory / "whole"
    write_corpus(corpus)
    run_module(PREPARE, f"out_dir={directory / 'data'}", f"corpus.path={corpus}", *SMALL_DATA)
    corpus.unlink()
    shutil.rmtree(directory / "data/corpus")
    pretrained(directory / "run", directory / "data", (*SMALL_RUN, "checkpoint.keep_last=2"))
    (directory / "run").rename(whole)
    shutil.copytree(whole / "checkpoints/step_00000010", directory / "run/checkpoints/step_00000010")
    shutil.copyfile(whole / "config.yaml", directory / "run/config.yaml")
    kept = "".join(json.dumps(row) + "\n" for row in rows_of(whole) if row["step"] <= 10)
    (directory / "run/metrics.jsonl").write_text(kept, encoding="utf-8")
    shutil.rmtree(whole)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser("check", help="compare this tree with a reference")
    checking.add_argument("reference", type=Path, nargs="?", default=REFERENCE)
    checking.add_argument("--small", action="store_true", help="without the demo")
    commands.add_parser("record", help="write a reference").add_argument("out", type=Path)
    commands.add_parser("fixture", help="write a run stopped halfway").add_argument("directory", type=Path)
    given = parser.parse_args()
    if given.command == "check":
        check(given.reference, given.small)
    elif given.command == "record":
        record(given.out)
    else:
        write_fixture(given.directory)


if __name__ == "__main__":
    main()
