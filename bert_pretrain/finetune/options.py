"""Options of fine-tuning: the task, its data, its hyper-parameters."""

from dataclasses import dataclass
from pathlib import Path

from bert_pretrain.errors import ConfigError, require, require_choice, require_least, require_positive, require_seed

METRICS = {
    "classification": ("accuracy", "f1", "matthews", "pearson", "spearman"),
    "regression": ("pearson", "spearman"),
    "squad": ("f1", "exact_match"),
    "tags": ("f1", "precision", "recall", "accuracy"),
}
"""By kind of task. F1 of a classification is that of the second of two labels."""
COMPRESSIONS = ("", ".gz", ".bz2", ".xz", ".zst")


@dataclass
class TrainingConfig:
    """Hyper-parameters: AdamW with linear warm-up and linear decay of the learning rate."""

    batch_size: int
    """Examples (for SQuAD: windows) in one step, over all ranks."""
    micro_batch_size: int | None
    """Examples that one rank runs forward at once; null: its whole share of the batch."""
    eval_batch_size: int
    """Examples that one rank evaluates at once."""
    epochs: float
    """Passes over the training set."""
    lr: float
    """Peak learning rate."""
    warmup_proportion: float
    """Share of all steps in which the learning rate rises from 0 to lr."""
    weight_decay: float
    """Decoupled weight decay; biases and LayerNorms have none."""
    adam_eps: float
    """Epsilon of AdamW."""
    max_grad_norm: float
    """Gradients with a larger global norm are scaled down to it; 0: never."""
    max_length: int
    """Longest input in tokens; longer ones are truncated (SQuAD: split into windows)."""
    max_train_samples: int | None
    """Train on this many randomly drawn examples, the same for every seed; null: on all."""
    precision: str
    """auto (bf16 on GPUs that support it, else fp32), fp32, bf16 or fp16."""
    checkpoint_minutes: float | None
    """Minutes between two checkpoints of a seed, which are removed when it is finished; 0: after each step; null: only
    where a stop is requested."""

    def __post_init__(self) -> None:
        counts = "batch_size", "micro_batch_size", "eval_batch_size", "max_train_samples"
        require_least(1, self, *counts, prefix="training.")
        require_least(8, self, "max_length", prefix="training.")
        not_negative = "checkpoint_minutes", "weight_decay", "adam_eps", "max_grad_norm"
        require_least(0, self, *not_negative, prefix="training.")
        require_positive(self, "epochs", "lr", prefix="training.")
        require(0 <= self.warmup_proportion < 1, "training.warmup_proportion", self.warmup_proportion, "0 to below 1")
        require_choice("training.precision", self.precision, ("auto", "fp32", "bf16", "fp16"))


@dataclass
class SplitConfig:
    """One split of a task."""

    file: str
    """Name of the published file, looked up in data.dir, compressed or not; several names, separated by |: the first
    that is there."""
    hub: str | None
    """Name of the split on the hub; null if the hub does not have it."""
    predictions: str
    """Name of the file with predictions, as the benchmark's submission requires."""
    hub_subset: str | None = None
    """Subset on the hub that has the split; null: task.hub_subset."""


@dataclass
class AnswerConfig:
    """SQuAD: how contexts are split into windows, and how answers are decoded."""

    unanswerable: bool
    """Whether questions may have no answer (SQuAD 2.0)."""
    max_query_length: int
    """Longest question in tokens; longer ones are truncated."""
    doc_stride: int
    """Tokens between the starts of two windows of one context."""
    max_answer_length: int
    """Longest answer in tokens."""
    n_best: int
    """Number of best start and of best end positions per window that are combined."""
    null_threshold: float
    """Predict "no answer" if its score exceeds that of the best span by more than this."""

    def __post_init__(self) -> None:
        counts = "max_query_length", "doc_stride", "max_answer_length", "n_best"
        require_least(1, self, *counts, prefix="task.answers.")


@dataclass
class TaskConfig:
    """A task: its published data and its metrics."""

    name: str
    """Name in tables and file names."""
    kind: str
    """classification, regression, squad or tags."""
    hub: str
    """Dataset name on the hub."""
    hub_subset: str | None
    """Subset of that dataset; null: it has none."""
    splits: dict[str, SplitConfig]
    """train, dev, further dev_NAME sets to evaluate, and test sets whose names begin with test."""
    columns: list[str]
    """The one or two text columns in the published files."""
    label_column: str
    """The label column in the published files."""
    hub_columns: list[str]
    """The text columns on the hub, where the label column is always called label."""
    labels: list[str]
    """Labels as spelled in the published files, in the order of the hub's label ids; empty for a regression, and for
    tags: those of the training set."""
    metrics: list[str]
    """accuracy, f1 (two labels), matthews, pearson, spearman (regression: pearson, spearman; SQuAD: f1, exact_match;
    tags: f1, precision, recall, accuracy); the first is the task's main metric."""
    no_header: list[str] | None = None
    """Column names, for files that are published without a header line; null: they have one."""
    label_range: list[float] | None = None
    """Smallest and largest label of a regression."""
    answers: AnswerConfig | None = None
    """Only for kind squad."""

    def __post_init__(self) -> None:
        require_choice("task.kind", self.kind, METRICS)
        require({"train", "dev"} <= set(self.splits), "task.splits", sorted(self.splits), "train, dev and others")
        train = self.splits["train"]
        for name, split in self.splits.items():
            same = name != "train" and (split.file == train.file or (split.hub is not None and split.hub == train.hub))
            require(not same, f"task.splits.{name}", "the training set", "a split that is not trained on")
        allowed = "two or more" if self.kind == "classification" else "none"
        if self.kind != "tags":
            require((len(self.labels) > 1) == (self.kind == "classification"), "task.labels", self.labels, allowed)
        require((self.answers is not None) == (self.kind == "squad"), "task.answers", self.answers, "for kind squad")
        self._check_metrics()
        regression = self.kind == "regression"
        allowed = "[LOW, HIGH]" if regression else "null"
        require((self.label_range is not None) == regression, "task.label_range", self.label_range, allowed)

    def _check_metrics(self) -> None:
        known = METRICS[self.kind]
        if self.kind == "classification" and len(self.labels) > 2:
            known = tuple(name for name in known if name != "f1")
        require(len(self.metrics) > 0, "task.metrics", self.metrics, f"one or more of {', '.join(known)}")
        for name in self.metrics:
            require_choice(f"task.metrics of {self.name}", name, known)


@dataclass
class SourceConfig:
    """Where the data is. If all are null, it is loaded from the hub."""

    dir: str | None
    """Directory with the task's files under their published names, compressed or not."""
    train_file: str | None
    """Training file of any name, instead of the one in data.dir."""
    dev_file: str | None
    """Evaluation file of any name."""
    test_file: str | None
    """File of any name to predict; labels are not read, but for tags."""

    def file(self, split: str, name: str) -> Path | None:
        """The file of ``split``, which is published as ``name``; None if there is none."""
        given = {"train": self.train_file, "dev": self.dev_file, "test": self.test_file}.get(split)
        if given is not None:
            if not Path(given).is_file():
                raise ConfigError(f"data.{split}_file is {given!r}, which is not a file; give one that exists")
            return Path(given)
        if self.dir is None:
            return None
        found = [Path(self.dir, each + suffix) for each in name.split("|") for suffix in COMPRESSIONS]
        return next((path for path in found if path.is_file()), None)

    @property
    def is_hub(self) -> bool:
        """Whether the data is loaded from the hub."""
        return not any((self.dir, self.train_file, self.dev_file, self.test_file))


@dataclass
class FinetuneConfig:
    """Options of ``bert-pretrain finetune``."""

    model_dir: str
    """A folder written by bert-pretrain export, any other that transformers loads, or a model name on the hub."""
    from_scratch: bool
    """Start from random weights: a baseline that shows what pretraining gains."""
    task: TaskConfig
    data: SourceConfig
    training: TrainingConfig
    seeds: list[int]
    """One run per seed. The seed sets the weights of the new head, the order of the examples, and dropout."""
    out_dir: str
    """Directory for results.json and the predictions of each seed. If it holds results of the same options, seeds that
    are missing are run, and a seed that was stopped goes on."""
    overwrite: bool
    """Remove earlier results in out_dir and start anew. A link is followed: the folder that it points to is used."""
    predict_test: bool
    """Also predict the test sets."""
    save_models: bool
    """Save the fine-tuned model of each seed in out_dir/seed_N/model."""
    device: str
    """auto, cpu or cuda."""

    def __post_init__(self) -> None:
        require(len(set(self.seeds)) == len(self.seeds) > 0, "seeds", self.seeds, "one or more, all different")
        for seed in self.seeds:
            require_seed("seeds", seed, 32)  # numpy's limit
        self._check_tests()

    def _check_tests(self) -> None:
        """That test sets asked for are there, and that those given are asked for."""
        has_test = any(split.startswith("test") for split in self.task.splits)
        require(has_test or not self.predict_test, "predict_test", True, f"false, for {self.task.name} has no test set")
        if self.data.test_file is not None:
            taken = "test" in self.task.splits
            require(taken, "data.test_file", self.data.test_file, f"null, for {self.task.name} has no test set")
            if not self.predict_test:
                given = f"data.test_file is {self.data.test_file!r}, which is read only with predict_test=true"
                raise ConfigError(f"{given}; add that, or leave the file out")
