"""Options of fine-tuning: the task, its data, its hyper-parameters."""

from dataclasses import dataclass
from pathlib import Path

from bert_pretrain.errors import ConfigError, require

PACKED = ("", ".gz", ".bz2", ".xz", ".zst")


def existing(path: Path, option: str) -> Path:
    """``path``, if it is a file."""
    if not path.is_file():
        raise ConfigError(f"{option} is {str(path)!r}, which is no file; give one that exists")
    return path


@dataclass
class TrainingConfig:
    """The hyper-parameters of fine-tuning: AdamW, the learning rate rising and falling linearly."""

    batch_size: int
    """Examples (for SQuAD: windows) a step, over all ranks."""
    micro_batch_size: int | None
    """Of these, what a rank takes at a time; null: all of its share."""
    eval_batch_size: int
    """Examples a rank predicts at a time."""
    epochs: float
    lr: float
    warmup_proportion: float
    """Share of all steps in which the learning rate rises to ``lr``."""
    weight_decay: float
    adam_eps: float
    max_grad_norm: float
    max_length: int
    """Tokens of an input, at most."""
    max_train_samples: int | None
    """Train on this many examples, the same for all seeds; null: on all."""
    precision: str
    """auto (bf16 on GPUs that have it), fp32, bf16, fp16."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "micro_batch_size", "eval_batch_size", "max_train_samples"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"training.{name}", value, "1 or more")
        require(self.epochs > 0, "training.epochs", self.epochs, "more than 0")
        require(self.lr > 0, "training.lr", self.lr, "more than 0")
        require(0 <= self.warmup_proportion < 1, "training.warmup_proportion", self.warmup_proportion, "0 to below 1")
        require(self.max_length >= 8, "training.max_length", self.max_length, "8 or more")
        allowed = ("auto", "fp32", "bf16", "fp16")
        require(self.precision in allowed, "training.precision", self.precision, ", ".join(allowed))


@dataclass
class SplitConfig:
    """One set of examples of a task."""

    file: str
    """Its published file name, looked for in ``data_dir``, packed or not."""
    hub: str | None
    """Its name on the hub; null where the hub does not have it."""
    predictions: str
    """The file name under which predictions for it are submitted."""


@dataclass
class AnswerConfig:
    """How questions are put to the model, and answers read from it."""

    unanswerable: bool
    """Questions without an answer are allowed, and scored (SQuAD 2.0)."""
    max_query_length: int
    """Tokens after which a question is cut."""
    doc_stride: int
    """Tokens between the starts of two windows of one context."""
    max_answer_length: int
    """Tokens of an answer, at most."""
    n_best: int
    """Starts and ends of each window that are combined."""
    null_threshold: float
    """No answer where its score exceeds the best answer's by more than this."""


@dataclass
class TaskConfig:
    """A task: its data as published, and how it is scored."""

    name: str
    """Its name in files and tables."""
    kind: str
    """classification, regression or squad."""
    hub: str
    """The data set's name on the hub."""
    hub_subset: str | None
    """Its part there."""
    splits: dict[str, SplitConfig]
    """train; dev, and further sets to evaluate, which begin with dev; test sets, which begin with test."""
    columns: list[str]
    """The one or two columns of text in the published files."""
    label_column: str
    """The column of the label in the published files."""
    no_header: list[str] | None
    """All columns of files that are published without a header line; null where they have one."""
    hub_columns: list[str]
    """The columns of text on the hub, whose label is always ``label``."""
    labels: list[str]
    """The labels as the published files spell them, in the order of the hub's numbers; none for regression."""
    label_range: list[float] | None
    """Least and largest label of a regression."""
    metrics: list[str]
    """What is measured; the first is the task's own."""
    answers: AnswerConfig | None
    """Only for kind squad."""

    def __post_init__(self) -> None:
        kinds = ("classification", "regression", "squad")
        require(self.kind in kinds, "task.kind", self.kind, ", ".join(kinds))
        require({"train", "dev"} <= set(self.splits), "task.splits", sorted(self.splits), "train, dev and others")
        allowed = "two or more" if self.kind == "classification" else "none"
        require((len(self.labels) > 1) == (self.kind == "classification"), "task.labels", self.labels, allowed)
        require((self.answers is not None) == (self.kind == "squad"), "task.answers", self.answers, "for kind squad")
        require((self.label_range is not None) == (self.kind == "regression"), "task.label_range", self.label_range, "")


@dataclass
class SourceConfig:
    """Where the data is. Nothing given: the hub."""

    dir: str | None
    """A folder with the task's files under their published names."""
    train_file: str | None
    """This file for training, whatever its name."""
    dev_file: str | None
    """This file for evaluation."""
    test_file: str | None
    """This file for predictions without labels."""

    def file(self, split: str, name: str) -> Path | None:
        """The file of ``split``, published as ``name``; None where files do not hold it."""
        given = {"train": self.train_file, "dev": self.dev_file, "test": self.test_file}.get(split)
        if given is not None:
            return existing(Path(given), f"data.{split}_file")
        if self.dir is None:
            return None
        found = [Path(self.dir, name + ending) for ending in PACKED]
        return next((path for path in found if path.is_file()), None)

    @property
    def is_hub(self) -> bool:
        """True where no file is named."""
        return not any((self.dir, self.train_file, self.dev_file, self.test_file))


@dataclass
class FinetuneConfig:
    """Options of ``python -m bert_pretrain.finetune``."""

    model_dir: str
    """A folder that ``bert_pretrain.hub.export`` wrote, any other that ``transformers`` loads, or a name on the hub."""
    from_scratch: bool
    """Random weights instead of the pretrained ones: what pretraining is worth is the difference."""
    task: TaskConfig
    data: SourceConfig
    training: TrainingConfig
    seeds: list[int]
    """A run for each: it decides the new weights, the order of the examples, and dropout."""
    out_dir: str
    """Gets results.json and, for each seed, predictions."""
    overwrite: bool
    """Replace the results of an earlier run in ``out_dir``."""
    predict_test: bool
    """Predict the test sets, too."""
    save_models: bool
    """Keep the fine-tuned model of each seed."""
    device: str

    def __post_init__(self) -> None:
        require(len(set(self.seeds)) == len(self.seeds) > 0, "seeds", self.seeds, "one or more, all different")
