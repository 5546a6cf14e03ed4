"""Continued pretraining of a real model on a domain, and what it is worth after fine-tuning.

    python scripts/study_domain.py MODEL DATA WORK_DIR RESULT.json

MODEL is a folder of a pretrained BERT, DATA has ``books``, ``wiki``, ``glue`` and ``squad``. Every unit of work
(shards, a run, its held-out losses, a fine-tuning with one seed) is kept in WORK_DIR and not computed again, so that
the script may be stopped at any time. RESULT is written after each unit from what is there.

Plan, for a part of one CPU core. A 6-layer model of width 384 with 30,522 words trains on 1,000 to 1,500 tokens a
second, so a run of 160 steps of 16 samples takes 3 to 5 minutes, and a fine-tuning 1 to 5.

1. Shards of 128 tokens: parts of 10 novels, 96 Wikipedia articles, and both.
2. Runs, the most telling first: from MODEL and from random weights with NVLAMB, then with AdamW; on the same samples.
3. Held-out losses of every model, on the novels and on the articles: what a domain gains and what the other loses.
4. Fine-tuning of both starts and of the two models continued with NVLAMB, with seeds 1, 2 and 3. Training sets are
   fixed random subsets.
"""

import json
import lzma
import random
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import repository_root  # noqa: F401  makes bert_pretrain importable
import torch
from beside_trainer_side import heldout_evaluation
from results_file import argument_parser, write_result
from transformers import BertForMaskedLM

from bert_pretrain.build import trial_trainer
from bert_pretrain.config import PretrainConfig
from bert_pretrain.distributed.world import open_world
from bert_pretrain.hub.shape import resolve_model
from bert_pretrain.model.precision import has_bf16
from bert_pretrain.options.config_loading import load_config

NOVELS, PARAGRAPHS = 10, 150  # of 250 to 600 KB; a document is so many paragraphs
STEPS, BATCH = 160, 16
OPTIMIZERS = {
    "nvlamb": ("optimizer=nvlamb_small_batch", {"model": "optimizer.lr=2e-3", "random": "optimizer.lr=5e-3"}),
    "adamw": ("optimizer=adamw", {"model": "optimizer.lr=2e-4", "random": "optimizer.lr=5e-4"}),
}
"""Recipe and learning rates, from the model and from random weights."""
CORPORA = ("novels", "articles", "both")
HELDOUT_SAMPLES = 208
SEEDS = (1, 2, 3)
DEV_ARTICLES, DEV_STRIDE = 8, 8  # SQuAD's dev set: every eighth paragraph of the first 8 of 48 articles
TASKS = {
    "sst2": ("accuracy", "max_train_samples=2000 epochs=1 lr=1e-4"),
    "mrpc": ("f1", "max_train_samples=1500 epochs=2 lr=1e-4 max_length=96"),
    "squad": ("f1", "max_train_samples=1500 epochs=1 lr=3e-4 max_length=160"),
    "rte": ("accuracy", "max_train_samples=1200 epochs=1 lr=1e-4 max_length=96"),
}
"""The metric and the training options of each task."""
FOLDERS = {"sst2": "SST-2", "mrpc": "MRPC", "rte": "RTE"}


@dataclass(frozen=True)
class Arm:
    """A run of pretraining. Without a corpus: the model at step 0."""

    start: str
    """``model`` or ``random``."""
    corpus: str | None = None
    optimizer: str | None = None

    @property
    def name(self) -> str:
        """Folder name."""
        return "_".join(filter(None, (self.start, self.corpus, self.optimizer)))


STARTS = (Arm("model"), Arm("random"))
ARMS = (
    Arm("model", "novels", "nvlamb"),
    Arm("model", "both", "nvlamb"),
    Arm("random", "both", "nvlamb"),
    Arm("model", "novels", "adamw"),
    Arm("model", "articles", "nvlamb"),
    Arm("model", "both", "adamw"),
    Arm("random", "both", "adamw"),
    Arm("model", "articles", "adamw"),
    Arm("random", "novels", "nvlamb"),
    Arm("random", "articles", "nvlamb"),
)
FINETUNED = (*STARTS, *ARMS[:2])


@dataclass(frozen=True)
class Places:
    """Where everything is."""

    model: Path
    data: Path
    work: Path

    def shards(self, corpus: str) -> Path:
        """The shards of a corpus."""
        return self.work / f"shards_{corpus}"

    def exported(self, arm: Arm) -> Path:
        """The trained model of an arm."""
        return self.work / "runs" / arm.name / "model"

    def heldout(self, arm: Arm) -> Path:
        """The held-out losses of an arm."""
        return self.work / "heldout" / f"{arm.name}.json"

    def scores(self, arm: Arm, task: str, seed: int) -> Path:
        """The folder of a fine-tuning."""
        return self.work / "finetune" / f"{arm.name}_{task}_{seed}"


def command(name: str, *options: str) -> None:
    """Run a command of the program."""
    subprocess.run([sys.executable, "-m", "bert_pretrain.cli", name, *options], check=True)


def write_texts(places: Places) -> None:
    """Write both corpora as text files with a paragraph a line and a blank line between documents."""
    with tarfile.open(places.data / "books/100_english_novels.tar.xz") as archive:
        found = sorted((m for m in archive if m.isfile() and 250_000 < m.size < 600_000), key=lambda m: m.name)
        documents = []
        for member in sorted(random.Random(0).sample(found, NOVELS), key=lambda m: m.name):
            file = archive.extractfile(member)
            assert file is not None
            lines = [" ".join(line.split()) for line in file.read().decode("utf-8-sig").splitlines() if line.strip()]
            documents += ["\n".join(lines[i : i + PARAGRAPHS]) for i in range(0, len(lines), PARAGRAPHS)]
    (places.work / "novels.txt").write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    with lzma.open(places.data / "wiki/wikipedia_articles.txt.xz") as articles:
        (places.work / "articles.txt").write_bytes(articles.read())


def make_shards(places: Places, corpus: str) -> None:
    """Make the shards of a corpus with the model's tokenizer."""
    if not (places.work / "articles.txt").exists():
        write_texts(places)
    first, *other = ("articles", "novels") if corpus == "both" else (corpus,)
    options = ["corpus=text", f"corpus.path={places.work / first}.txt"]
    for name in other:
        options += [f"+corpus@mix.{name}=text", f"mix.{name}.path={places.work / name}.txt"]
    options += ["sequence_lengths=[128]", "sample_kind=single", "heldout_fraction=0.03", "engine.workers=1"]
    command("prepare", *options, f"vocab={places.model}", f"out_dir={places.shards(corpus)}")


def run_options(places: Places, arm: Arm) -> list[str]:
    """The options of a run."""
    recipe, rates = OPTIMIZERS[arm.optimizer or "nvlamb"]
    options = ["recipe=demo", recipe, rates[arm.start], "model=from_init", f"init_from={places.model}"]
    options += ["model.next_sentence=false", f"data.dir={places.shards(arm.corpus or 'novels')}"]
    options += ["data.sequence_length=128", "data.masked_lm_prob=0.15", f"batch.global_batch_size={BATCH}"]
    options += [f"schedule.total_steps={STEPS}", "schedule.warmup_proportion=0.1", "logging.every_steps=20"]
    options += ["logging.layers_every_steps=0", f"run_dir={places.exported(arm).parent}"]
    return [*options, f"training.evaluate_every_steps={STEPS}", f"checkpoint.every_steps={STEPS // 2}"]


def pretrain(places: Places, arm: Arm) -> None:
    """Train an arm, and export it; an arm without a corpus is exported as it starts."""
    out, options = places.exported(arm), run_options(places, arm)
    if arm.start == "random" and arm.corpus:  # the same shape, and the tokenizer
        options[options.index(f"init_from={places.model}")] = f"init_from={places.exported(STARTS[1])}"
    if arm.corpus:
        command("pretrain", *options)
        command("export", f"run_dir={out.parent}", f"out_dir={out}", "overwrite=true")
        return
    config = resolve_model(load_config("pretrain", options, PretrainConfig))
    with open_world("cpu") as world:
        trainer = trial_trainer(config, world, out.parent / "none")
    bert = trainer.model.bert
    if arm.start == "random":
        torch.manual_seed(1)
        bert = type(bert)(bert.config)
    out.mkdir(parents=True)
    bert.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (out / name).write_bytes((places.model / name).read_bytes())


def measure_heldout(places: Places, arm: Arm) -> None:
    """Held-out masked-word losses on the novels and the articles, by plain ``transformers``."""
    model = BertForMaskedLM.from_pretrained(places.exported(arm))
    losses = {}
    for corpus in ("novels", "articles"):
        options = ["recipe=demo", f"data.dir={places.shards(corpus)}", "data.sequence_length=128"]
        config = load_config("pretrain", options, PretrainConfig)
        losses[corpus] = heldout_evaluation(model, config, HELDOUT_SAMPLES)()
    places.heldout(arm).parent.mkdir(exist_ok=True)
    places.heldout(arm).write_text(json.dumps(losses), encoding="utf-8")


def task_data(places: Places, task: str) -> list[str]:
    """Options of ``bert-pretrain finetune``: the task and its data."""
    if task != "squad":
        return [f"task={task}", f"data.dir={places.data / 'glue' / FOLDERS[task]}"]
    dev = places.work / "squad_dev.json"
    with lzma.open(places.data / "squad/dev-v1.1.rebuilt.json.xz") as file:
        articles = json.load(file)["data"][:DEV_ARTICLES]
    some = [{**article, "paragraphs": article["paragraphs"][::DEV_STRIDE]} for article in articles]
    dev.write_text(json.dumps({"data": some}), encoding="utf-8")
    train = places.data / "squad/squadshifts_new_wiki_v1.0.json.xz"
    return ["task=squad_v1", f"data.train_file={train}", f"data.dev_file={dev}", "task.answers.doc_stride=64"]


def finetune(places: Places, arm: Arm, task: str, seed: int) -> None:
    """Fine-tune a model once."""
    options = [f"model_dir={places.exported(arm)}", f"seeds=[{seed}]", *task_data(places, task)]
    options += [f"training.{option}" for option in TASKS[task][1].split()]
    options.append(f"training.precision={'bf16' if has_bf16(torch.device('cpu')) else 'fp32'}")
    command("finetune", *options, f"out_dir={places.scores(arm, task, seed)}")


def units(places: Places) -> Iterator[tuple[Path, Any]]:
    """What is to be done, in order: the file that shows that it is done, and the work."""
    for corpus in CORPORA:
        yield places.shards(corpus) / "manifest.json", partial(make_shards, places, corpus)
    for arm in (*STARTS, *ARMS[:2], None, *ARMS[2:]):
        if arm is None:  # the first scores, before the other runs
            for start in FINETUNED:
                yield places.scores(start, "sst2", 1) / "results.json", partial(finetune, places, start, "sst2", 1)
            continue
        yield places.exported(arm) / "config.json", partial(pretrain, places, arm)
        yield places.heldout(arm), partial(measure_heldout, places, arm)
    for seed in SEEDS:
        for task in TASKS:
            for arm in FINETUNED:
                yield places.scores(arm, task, seed) / "results.json", partial(finetune, places, arm, task, seed)


def row(places: Places, arm: Arm) -> dict[str, Any]:
    """One line of the table."""
    losses = json.loads(places.heldout(arm).read_text(encoding="utf-8"))
    found: dict[str, Any] = {"start": {"model": "MiniLM-L6"}.get(arm.start, arm.start), "trained on": arm.corpus or "-"}
    found |= {"optimizer": arm.optimizer or "-", "loss, novels": losses["novels"], "loss, articles": losses["articles"]}
    for task, (metric, _) in TASKS.items():
        files = [places.scores(arm, task, seed) / "results.json" for seed in SEEDS]
        done = [json.loads(file.read_text(encoding="utf-8"))["runs"][0][metric] for file in files if file.exists()]
        text = f"{statistics.median(done):.1f} ({min(done):.1f} to {max(done):.1f}, n={len(done)})" if done else "-"
        found[f"{task} {metric}"] = text
    return found


def write_table(places: Places, result: Path) -> None:
    """Write the result from what is there."""
    rows = [row(places, arm) for arm in (*STARTS, *ARMS) if places.heldout(arm).exists()]
    note = "Held-out masked-word losses in nats; scores: median (least to greatest, number of seeds). "
    note += f"A run is {STEPS} steps of {BATCH} samples. Learning rates: {OPTIMIZERS}. Fine-tuning: {TASKS}."
    if rows:
        write_result(result, "Continued pretraining of a real model, and its worth after fine-tuning", rows, note)


def main() -> None:
    """Compute what is missing and write the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("work_dir", type=Path)
    parser.add_argument("result", type=Path)
    given = parser.parse_args()
    given.work_dir.mkdir(parents=True, exist_ok=True)
    places = Places(given.model, given.data, given.work_dir)
    for done, work in units(places):
        if not done.exists():
            work()
            write_table(places, given.result)


if __name__ == "__main__":
    main()
