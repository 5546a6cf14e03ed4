"""Damaged and invented input, from hypothesis: one message for the user, or a sound result; nothing else.

    python scripts/fuzz.py shards|manifests|configurations|checkpoints SECONDS SEED RESULT.json

Shards and checkpoints: bytes of a sound file overwritten, cut out or cut off. Manifests: invented JSON, and damaged
bytes. Configurations: invented command lines, with every option. Checkpoints: damage must be found whatever it is. What
must not happen: an exception other than ``ConfigError``, a crash, or a case of more than 60 seconds.
"""

import faulthandler
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import hypothesis
import torch
from hypothesis import strategies as st
from results_file import write_result
from transformers import BertConfig, BertForPreTraining

from bert_pretrain.checkpoint.files import find_fault
from bert_pretrain.checkpoint.store import CheckpointStore, Progress
from bert_pretrain.config import PretrainConfig, check_same_run, resolved_yaml
from bert_pretrain.config_loading import load_config
from bert_pretrain.data.dataset import DataConfig, ShardSet, open_split
from bert_pretrain.data.shards import MANIFEST, read_manifest, shard_paths
from bert_pretrain.errors import ConfigError
from bert_pretrain.optim.schedule import learning_rate_table
from tests.conftest import LENGTH, VOCAB_SIZE, make_shards

SECONDS_A_CASE = 60
Damage = tuple[float, bytes | None, int]
"""Where (a share of the file), what is written there or None for nothing, and how many bytes of the old go."""
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
    """``content`` with one place overwritten, cut out or cut off."""
    share, written, gone = damage
    place = int(share * len(content))
    if written is None:
        return content[:place] if gone == 0 else content[:place] + content[place + gone :]
    return content[:place] + written + content[place + len(written) :]


def try_shards(directory: Path, damages: list[Damage]) -> str:
    """Open and read a directory whose second shard is damaged; what came of it."""
    shard = directory / "train_00001.hdf5"
    sound = (directory / "sound").read_bytes()
    content = sound
    for damage in damages:
        content = damaged(content, damage)
    shard.write_bytes(content)
    config = DataConfig(str(directory), "none", LENGTH, "static", None, "content", 8, 3)
    shards = open_split(config, "train", VOCAB_SIZE)
    assert shards is not None
    for start in range(0, shards.samples, 8):
        shards.read(start, min(start + 8, shards.samples))
    close(shards)
    return "read" if content == sound else "read, damage where nothing stands"


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
    """Every option of pretrain by its full name."""
    names = []
    for field in fields(schema):
        inner = field.type
        names += option_names(inner, f"{prefix}{field.name}.") if is_dataclass(inner) else [prefix + field.name]
    return names


def try_words(words: list[str]) -> str:
    """Compose a configuration from a command line, and use it as far as it says what a run is."""
    config = load_config("pretrain", ["recipe=demo", "run_dir=run", *words], PretrainConfig)
    if config.schedule.total_steps < 10**6:
        learning_rate_table(config.optimizer.lr, config.schedule)
    check_same_run(resolved_yaml(config), resolved_yaml(config), "run")
    return "accepted"


def try_checkpoint(path: Path, name: str, damage: Damage) -> str:
    """Damage one file of a sound checkpoint, look, and mend it again."""
    file = path / name
    sound = file.read_bytes()
    content = damaged(sound, damage)
    file.write_bytes(content)
    fault = find_fault(path)
    file.write_bytes(sound)
    assert (fault is None) == (content == sound), f"{name}: {damage} was not found"
    return "found" if fault else "nothing was changed"


def sound_checkpoint(directory: Path) -> Path:
    """A small checkpoint."""
    shape: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = BertForPreTraining(BertConfig(vocab_size=20, max_position_embeddings=8, **shape))
    state = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []}
    return CheckpointStore(directory, 1, None).save(model, state, Progress(step=1), "seed: 1\n")


def cases(kind: str, directory: Path) -> tuple[Callable[..., str], dict[str, Any]]:
    """What is tried, and the strategies of its arguments."""
    if kind == "shards":
        make_shards(directory)
        shutil.copy(directory / "train_00001.hdf5", directory / "sound")
        return lambda damages: try_shards(directory, damages), {"damages": st.lists(DAMAGE, min_size=1, max_size=4)}
    if kind == "manifests":
        make_shards(directory)
        text = (directory / MANIFEST).read_bytes()
        spoilt = DAMAGE.map(lambda damage: damaged(text, damage).decode("utf-8", "surrogateescape"))
        deep = st.integers(1, 100_000).map(lambda depth: "[" * depth)
        invented = MANIFESTS.map(json.dumps) | st.text() | spoilt | deep
        return lambda text: try_manifest(directory, text), {"text": invented}
    if kind == "configurations":
        names = st.sampled_from(option_names(PretrainConfig)) | st.text("abcdefgh._", min_size=1, max_size=9)
        word = st.builds("{}{}={}".format, st.sampled_from(["", "", "", "+", "++", "~"]), names, VALUES)
        return try_words, {"words": st.lists(word | word | WORDS, min_size=1, max_size=3)}
    path = sound_checkpoint(directory)
    files = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    given = {"name": st.sampled_from(files), "damage": DAMAGE}
    return lambda name, damage: try_checkpoint(path, name, damage), given


def fuzz(kind: str, seconds: float, seed: int, directory: Path) -> Counter[str]:
    """Try until the time is over; how often what came of it. Raises what must not happen."""
    seen: Counter[str] = Counter()
    run, strategies = cases(kind, directory)
    end, number = time.monotonic() + seconds, 0

    def case(**given: Any) -> None:
        faulthandler.dump_traceback_later(SECONDS_A_CASE, exit=True)
        try:
            seen[run(**given)] += 1
        except ConfigError as error:
            seen["refused"] += 1
            if "\n" in str(error).strip():
                raise AssertionError(f"more than a line: {error}") from error
        finally:
            faulthandler.cancel_dump_traceback_later()

    while time.monotonic() < end:
        settings = hypothesis.settings(max_examples=100, deadline=None, database=None, derandomize=False)
        test = hypothesis.seed(random.Random(f"{seed} {number}").getrandbits(64))(hypothesis.given(**strategies)(case))
        settings(test)()
        number += 1
    return seen


def main() -> None:
    """Fuzz and write down the counts."""
    kind, seconds, seed, result = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    faulthandler.enable()
    with tempfile.TemporaryDirectory(prefix="fuzz.") as folder:
        seen = fuzz(kind, seconds, seed, Path(folder))
    rows = [{"input": kind, "outcome": outcome, "cases": count} for outcome, count in sorted(seen.items())]
    note = f"Seed {seed}, {seconds:.0f} s; no exception but ConfigError, no crash, no case above {SECONDS_A_CASE} s."
    write_result(result, f"Fuzzing {kind} with hypothesis", rows, note)


if __name__ == "__main__":
    main()
