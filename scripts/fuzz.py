"""Fuzzes shards, manifests, configurations and checkpoints with hypothesis.

    python scripts/fuzz.py shards 60 2026 fuzz_shards.json

Shards and checkpoints: bytes of a valid file are overwritten, removed or truncated. Manifests: generated JSON, and
damaged bytes. Configurations: generated command lines over all options. Each case must give a one-line ``ConfigError``
or a valid result. Any other exception, a crash, a case of more than 60 seconds, or damage to a checkpoint that is not
detected stops the script with a traceback.
"""

import faulthandler
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import hypothesis
import repository_root  # noqa: F401  makes bert_pretrain importable
import torch
from hypothesis import strategies as st
from results_file import argument_parser, write_result
from transformers import BertConfig, BertForPreTraining

from bert_pretrain.checkpoint.files import find_fault
from bert_pretrain.checkpoint.store import CheckpointStore, Progress
from bert_pretrain.config import PretrainConfig, resolved_yaml
from bert_pretrain.data.dataset import ShardSet, open_split
from bert_pretrain.data.options import DataConfig
from bert_pretrain.data.shard_directory import MANIFEST, read_manifest, shard_paths
from bert_pretrain.errors import ConfigError
from bert_pretrain.optim.schedule import learning_rate_table
from bert_pretrain.options.config_loading import load_config
from bert_pretrain.same_run import check_same_run
from tests.conftest import LENGTH, VOCAB_SIZE, make_shards

SECONDS_PER_CASE = 60
Damage = tuple[float, bytes | None, int]
"""Position as a share of the file; the bytes written there, or None; if None, the bytes removed, or 0 to truncate."""
DAMAGE = st.tuples(st.floats(0, 1), st.none() | st.binary(min_size=1, max_size=64), st.integers(0, 4096))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
ROW = st.fixed_dictionaries(
    {},
    optional={"name": JSON, "split": st.sampled_from(["train", "heldout"]) | JSON, "samples": JSON, "checksum": JSON},
)
MANIFESTS = JSON | st.fixed_dictionaries({"shards": st.lists(ROW | JSON, max_size=3) | JSON})
VALUES = (
    st.sampled_from(["1", "2", "64", "0.5", "1e-3", "null", "auto", "nvlamb", "true", "0", "-1"])
    | st.sampled_from(["1e308", "1e-320", "nan", "inf", "[]", "{}", "???"])
    | st.integers().map(str)
    | st.floats().map(str)
    | st.text(max_size=20).map(json.dumps)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
)
WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


def damaged(content: bytes, damage: Damage) -> bytes:
    """``content`` with bytes overwritten, removed or truncated."""
    share, written, removed = damage
    start = int(share * len(content))
    if written is None:
        return content[:start] if removed == 0 else content[:start] + content[start + removed :]
    return content[:start] + written + content[start + len(written) :]


def try_shards(directory: Path, damages: list[Damage]) -> str:
    """Open and read a directory whose second shard is damaged; return the outcome."""
    shard = directory / "train_00001.hdf5"
    valid = (directory / "valid").read_bytes()
    content = valid
    for damage in damages:
        content = damaged(content, damage)
    shard.write_bytes(content)
    config = DataConfig("", 1.0, str(directory), "none", LENGTH, "static", None, None, None, "content", 8, None, 3)
    shards = open_split(config, "train", VOCAB_SIZE)
    assert shards is not None
    for start in range(0, shards.samples, 8):
        shards.read(start, min(start + 8, shards.samples))
    close(shards)
    return "read" if content == valid else "read, damage in unused bytes"


def close(shards: ShardSet) -> None:
    """Close the files of a split."""
    while shards._open:
        shards._open.popitem()[1].close()


def try_manifest(directory: Path, text: str) -> str:
    """Read a directory with this text as its manifest."""
    (directory / MANIFEST).write_text(text, encoding="utf-8", errors="surrogatepass")
    read_manifest(directory)
    for split in ("train", "heldout"):
        shard_paths(directory, split)
    return "read"


def option_names(schema: Any, prefix: str = "") -> list[str]:
    """The full name of every option of pretrain."""
    names = []
    for field in fields(schema):
        inner = field.type
        names += option_names(inner, f"{prefix}{field.name}.") if is_dataclass(inner) else [prefix + field.name]
    return names


def try_words(words: list[str]) -> str:
    """Compose a configuration from a command line; compute its schedule and compare it with itself."""
    config = load_config("pretrain", ["recipe=demo", "run_dir=run", *words], PretrainConfig)
    if config.schedule.total_steps < 10**6:
        learning_rate_table(config.optimizer.lr, config.schedule)
    check_same_run(resolved_yaml(config), resolved_yaml(config), "run")
    return "accepted"


def try_checkpoint(path: Path, name: str, damage: Damage) -> str:
    """Damage one file of a valid checkpoint, check it, and restore it."""
    file = path / name
    valid = file.read_bytes()
    content = damaged(valid, damage)
    file.write_bytes(content)
    fault = find_fault(path)
    file.write_bytes(valid)
    assert (fault is None) == (content == valid), f"{name}: {damage} was not detected"
    return "detected" if fault else "unchanged bytes"


def small_checkpoint(directory: Path) -> Path:
    """Write a small checkpoint; return its path."""
    shape: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = BertForPreTraining(BertConfig(vocab_size=20, max_position_embeddings=8, **shape))
    state = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []}
    return CheckpointStore(directory, 1, None).save(model, state, Progress(step=1), "seed: 1\n")


def cases(kind: str, directory: Path) -> tuple[Callable[..., str], dict[str, Any]]:
    """The function to fuzz, and the strategies of its arguments."""
    if kind == "shards":
        make_shards(directory)
        shutil.copy(directory / "train_00001.hdf5", directory / "valid")
        return lambda damages: try_shards(directory, damages), {"damages": st.lists(DAMAGE, min_size=1, max_size=4)}
    if kind == "manifests":
        make_shards(directory)
        text = (directory / MANIFEST).read_bytes()
        corrupt = DAMAGE.map(lambda damage: damaged(text, damage).decode("utf-8", "surrogateescape"))
        deep = st.integers(1, 100_000).map(lambda depth: "[" * depth)
        generated = MANIFESTS.map(json.dumps) | st.text() | corrupt | deep
        return lambda text: try_manifest(directory, text), {"text": generated}
    if kind == "configurations":
        names = st.sampled_from(option_names(PretrainConfig)) | st.text("abcdefgh._", min_size=1, max_size=9)
        word = st.builds("{}{}={}".format, st.sampled_from(["", "", "", "+", "++", "~"]), names, VALUES)
        return try_words, {"words": st.lists(word | word | WORDS, min_size=1, max_size=3)}
    path = small_checkpoint(directory)
    files = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    strategies = {"name": st.sampled_from(files), "damage": DAMAGE}
    return lambda name, damage: try_checkpoint(path, name, damage), strategies


def fuzz(kind: str, seconds: float, seed: int, directory: Path) -> Counter[str]:
    """Run cases until the time is over; the number of cases by outcome."""
    seen: Counter[str] = Counter()
    run, strategies = cases(kind, directory)
    end, number = time.monotonic() + seconds, 0

    def case(**given: Any) -> None:
        faulthandler.dump_traceback_later(SECONDS_PER_CASE, exit=True)
        try:
            seen[run(**given)] += 1
        except ConfigError as error:
            seen["refused"] += 1
            if "\n" in str(error).strip():
                raise AssertionError(f"the message has more than one line: {error}") from error
        finally:
            faulthandler.cancel_dump_traceback_later()

    while time.monotonic() < end:
        settings = hypothesis.settings(max_examples=100, deadline=None, database=None, derandomize=False)
        test = hypothesis.seed(random.Random(f"{seed} {number}").getrandbits(64))(hypothesis.given(**strategies)(case))
        settings(test)()
        number += 1
    return seen


def main() -> None:
    """Fuzz and write the counts."""
    parser = argument_parser(__doc__)
    parser.add_argument("kind", choices=("shards", "manifests", "configurations", "checkpoints"))
    parser.add_argument("seconds", type=float)
    parser.add_argument("seed", type=int)
    parser.add_argument("result", type=Path, help="JSON file to write")
    given = parser.parse_args()
    faulthandler.enable()
    with tempfile.TemporaryDirectory(prefix="fuzz.") as folder:
        seen = fuzz(given.kind, given.seconds, given.seed, Path(folder))
    rows = [{"input": given.kind, "outcome": outcome, "cases": count} for outcome, count in sorted(seen.items())]
    note = f"Seed {given.seed}, {given.seconds:.0f} s; no exception but ConfigError, no crash, no case above "
    note += f"{SECONDS_PER_CASE} s."
    write_result(given.result, f"Fuzzing {given.kind} with hypothesis", rows, note)


if __name__ == "__main__":
    main()
