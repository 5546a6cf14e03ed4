"""``bert-pretrain push-shards``: a directory of shards as a data set of the hub."""

import json
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from bert_pretrain.data.shard_directory import MANIFEST, SPLITS, TOKENIZER, check_listed, read_manifest, shard_paths
from bert_pretrain.data.shards import ShardReader
from bert_pretrain.data.tokenizer_files import FILES
from bert_pretrain.errors import ConfigError
from bert_pretrain.hub.card import dataset_card
from bert_pretrain.hub.public_manifest import public_manifest
from bert_pretrain.hub.push import open_target, push
from bert_pretrain.options.entry_point import entry_point


@dataclass
class PushShardsConfig:
    """Options of ``bert-pretrain push-shards``."""

    dir: str
    """Directory of the shards that `bert-pretrain prepare` wrote: the one with manifest.json."""
    push_to: str
    """OWNER/NAME of the data set on the hub, or NAME for one of your own."""
    private: bool
    """Make a new data set private. One that is there stays as it is."""
    licence: str | None
    """The licence of the shards, by the hub's name for it (cc-by-sa-4.0); null: those of its sources."""


@entry_point("push_shards", PushShardsConfig)
def main(config: PushShardsConfig) -> None:
    """Push a directory of shards to the hub, with a card: sources, licences, languages, how it was prepared.

        bert-pretrain push-shards dir=data/mine push_to=OWNER/NAME

    Train on it with data.dir=hf://datasets/OWNER/NAME. The token is that of huggingface_hub (HF_TOKEN). All shards are
    checked before. Paths of this machine and examples of the text are left out of the manifest. The same command goes
    on after a failure.
    """
    directory = Path(config.dir)
    paths = [path for split in SPLITS for path in shard_paths(directory, split)]
    manifest = read_manifest(directory)
    if manifest is None or "tokenizer" not in manifest:
        raise ConfigError(f"dir {directory} has no {MANIFEST} of bert-pretrain prepare, from which the card is made")
    target = open_target(config.push_to, "dataset", config.private)
    for path in paths:
        with closing(ShardReader(path)) as reader:
            check_listed(reader, manifest)
            reader.check_content(manifest["tokenizer"]["vocab_size"])
    public = public_manifest(manifest)
    files: dict[str, Path | bytes] = {
        "README.md": dataset_card(public, target.repo, config.licence).encode(),
        MANIFEST: json.dumps(public, indent=2).encode(),
        **{f"{TOKENIZER}/{name}": path for name in FILES if (path := directory / TOKENIZER / name).is_file()},
        **{path.name: path for path in paths},
    }
    push(target, files, MANIFEST, f"{len(paths)} shards")
    print(f"train on it with data.dir=hf://datasets/{target.repo}")


if __name__ == "__main__":
    main()
