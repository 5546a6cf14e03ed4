"""Reading the published files of every task, and errors in files."""

import functools
import json
import lzma
from pathlib import Path

import numpy as np
import pytest

from bert_pretrain.errors import ConfigError
from bert_pretrain.finetune.options import FinetuneConfig
from bert_pretrain.finetune.sentences import Example, predicted, read_examples, submission
from bert_pretrain.finetune.tasks import read_split
from bert_pretrain.options.config_files import CONFIG_DIR
from bert_pretrain.options.config_loading import load_config

TASKS = sorted(path.stem for path in (CONFIG_DIR / "task").glob("*.yaml"))


@functools.cache
def composed(task: str, *options: str) -> FinetuneConfig:
    return load_config("finetune", [f"task={task}", "model_dir=m", *options], FinetuneConfig)


def read(task: str, folder: Path, split: str, *options: str) -> list[Example]:
    config = composed(task, f"data.dir={folder}", *options)
    found = read_split(config.task, config.data, split, logged.append)
    assert found is not None
    return read_examples(config.task, *found, labelled=not split.startswith("test"))


logged: list[str] = []

# Files as GLUE publishes them, with | for the tab: task, split, content, and the expected examples.
MNLI_HEAD = (
    "index|promptID|pairID|genre|sentence1_binary_parse|sentence2_binary_parse|sentence1_parse|sentence2_parse|"
    "sentence1|sentence2|"
)
MNLI_CELLS = "0|1|1e|fiction|( a )|( b )|(ROOT a)|(ROOT b)|He slept.|He woke.|"
PAIR = "index|sentence1|sentence2|label\n"
STSB_HEAD = "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2|score\n"
PUBLISHED = [
    (
        "cola",
        "train",
        'gj04|1||The "sailors" rode.\ngj04|0|*|Rode sailors the.\n',
        [('The "sailors" rode.', 1), ("Rode sailors the.", 0)],
    ),
    ("cola", "test", "index|sentence\n0|Bill slept.\n", [("Bill slept.", None)]),
    ("sst2", "train", 'sentence|label\n"a charming |1\nbleak " |0\n', [('"a charming ', 1), ('bleak " ', 0)]),
    ("sst2", "test", "index|sentence\n0|a film\n", [("a film", None)]),
    (
        "mrpc",
        "dev",
        '\ufeffQuality|#1 ID|#2 ID|#1 String|#2 String\n1|7|8|He said "no.|He said no.\r\n',
        [('He said "no.', "He said no.", 1)],
    ),
    ("mrpc", "test", "\ufeffindex|#1 ID|#2 ID|#1 String|#2 String\n0|7|8|A.|B.\n", [("A.", "B.", None)]),
    ("stsb", "dev", STSB_HEAD + "0|m|f|2012|1|n|n|A man.|A boy.|3.800\n", [("A man.", "A boy.", 3.8)]),
    ("qqp", "dev", "id|qid1|qid2|question1|question2|is_duplicate\n9|1|2|Why?|How?|0\n", [("Why?", "How?", 0)]),
    (
        "mnli",
        "train",
        MNLI_HEAD + "label1|gold_label\n" + MNLI_CELLS + "contradiction|contradiction\n",
        [("He slept.", "He woke.", 2)],
    ),
    (
        "mnli",
        "dev_mismatched",
        MNLI_HEAD + "label1|label2|label3|label4|label5|gold_label\n" + MNLI_CELLS + "a|b|c|d|e|neutral\n",
        [("He slept.", "He woke.", 1)],
    ),
    ("qnli", "train", "index|question|sentence|label\n0|Who?|He.|not_entailment\n", [("Who?", "He.", 1)]),
    ("rte", "dev", PAIR + "0|A.|B.|entailment\n", [("A.", "B.", 0)]),
    ("wnli", "train", PAIR + "0|It fell.|A cup fell.|1\n", [("It fell.", "A cup fell.", 1)]),
]


def tabbed(text: str) -> bytes:
    return text.replace("|", "\t").encode("utf-8")


@pytest.mark.parametrize(("task", "split", "text", "examples"), PUBLISHED, ids=[f"{t}-{s}" for t, s, *_ in PUBLISHED])
def test_published_files(tmp_path: Path, task: str, split: str, text: str, examples: list[tuple]) -> None:
    (tmp_path / composed(task).task.splits[split].file).write_bytes(tabbed(text))
    assert read(task, tmp_path, split) == [Example(tuple(texts), label) for *texts, label in examples]


def test_every_task_is_tested_on_a_published_file() -> None:
    assert {task for task, *_ in PUBLISHED} | {"squad_v1", "squad_v2", "ner"} == set(TASKS)


def test_compressed_files_json_lines_and_single_files(tmp_path: Path) -> None:
    (tmp_path / "train.tsv.xz").write_bytes(lzma.compress(b"sentence\tlabel\nfine\t1\n"))
    assert read("sst2", tmp_path, "train") == [Example(("fine",), 1)]
    lines = [
        {"premise": "A.", "hypothesis": "B.", "label": 2},
        {"premise": "C.", "hypothesis": "D.", "label": "neutral"},
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read("mnli", tmp_path, "train", f"data.train_file={tmp_path / 'mine.jsonl'}")
    assert found == [Example(("A.", "B."), 2), Example(("C.", "D."), 1)]


@pytest.mark.parametrize(
    ("task", "text", "message"),
    [
        ("rte", "index|sentence1|label\n0|A.|entailment\n", r"has the columns index, sentence1, label; rte needs"),
        ("rte", PAIR + "0|A.|B.|maybe\n", r"row 1 has the label 'maybe'; rte has entailment, not_entailment"),
        ("rte", PAIR + "0|A.|B.|1\n", r"row 1 has the label '1'"),
        ("rte", PAIR + "0|A. B.|entailment\n", r"line 2 has 3 columns; allowed: 4"),
        ("rte", PAIR, r"has no rows"),
        ("rte", "", r"is empty"),
        ("stsb", "sentence1|sentence2|score\nA.|B.|5.1\n", r"label '5.1'; stsb has numbers from 0 to 5"),
        ("stsb", "sentence1|sentence2|score\nA.|B.|nan\n", r"label 'nan'"),
        ("stsb", "sentence1|sentence2|score\nA.|B.|good\n", r"label 'good'"),
        ("cola", "a|b\n", r"has the columns a, b; cola needs"),
    ],
)
def test_errors_in_files_are_reported(tmp_path: Path, task: str, text: str, message: str) -> None:
    (tmp_path / "train.tsv").write_bytes(tabbed(text))
    with pytest.raises(ConfigError, match=message):
        read(task, tmp_path, "train")


def test_a_few_short_training_rows_are_skipped_and_logged(tmp_path: Path) -> None:
    head = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    text = head + "9\t1\t2\tWhy?\tHow?\t0\n" * 150 + "9\t1\t2\tWhy?\n" + "9\t1\t2\tWho?\tHow?\t1\n"
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text(text)
    logged.clear()
    assert len(read("qqp", tmp_path, "train")) == 151
    assert "skipped 1 rows with too few columns, the first in line 152" in logged[0]
    with pytest.raises(ConfigError, match="line 152 has 4 columns"):  # every row of a dev set needs a prediction
        read("qqp", tmp_path, "dev")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.dir is .* holds no train.tsv .* or data.train_file"):
        read("rte", tmp_path, "train")
    with pytest.raises(ConfigError, match=r"data.dev_file is 'nowhere.tsv', which is not a file"):
        read("rte", tmp_path, "dev", "data.dev_file=nowhere.tsv")
    (tmp_path / "train.tsv").write_bytes(b"index\tsentence1\xff")
    with pytest.raises(ConfigError, match=r"train.tsv cannot be read \(UnicodeDecodeError"):
        read("rte", tmp_path, "train")


def test_submissions_have_the_format_of_glue() -> None:
    mnli, stsb = composed("mnli").task, composed("stsb").task
    logits = np.array([[0.1, 0.2, 0.3], [0.5, 0.2, 0.3]])
    assert submission(mnli, predicted(mnli, logits)) == "index\tprediction\n0\tcontradiction\n1\tentailment\n"
    assert submission(stsb, predicted(stsb, np.array([[3.25]]))) == "index\tprediction\n0\t3.250\n"
    names = {split: value.predictions for split, value in mnli.splits.items() if split != "train"}
    assert names == {
        "dev": "MNLI-m.tsv",
        "dev_mismatched": "MNLI-mm.tsv",
        "test": "MNLI-m.tsv",
        "test_mismatched": "MNLI-mm.tsv",
        "test_diagnostic": "AX.tsv",
    }


def test_similarities_outside_their_range_are_clipped() -> None:
    """STS-B's are from 0 to 5; a regression's logits are not."""
    stsb = composed("stsb").task
    values = predicted(stsb, np.array([[-0.7], [0.0], [4.9], [6.2]]))
    assert submission(stsb, values) == "index\tprediction\n0\t0.000\n1\t0.000\n2\t4.900\n3\t5.000\n"


def test_the_training_set_is_not_evaluated(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("sentence\tlabel\nfine\t1\n")
    (tmp_path / "mine.tsv").symlink_to("train.tsv")
    with pytest.raises(ConfigError, match=r"mine.tsv is the training file and the dev set; give data another file"):
        read("sst2", tmp_path, "dev", f"data.dev_file={tmp_path / 'mine.tsv'}")
    with pytest.raises(ConfigError, match=r"task.splits.dev is 'the training set'; allowed: a split that is not"):
        composed("sst2", "task.splits.dev.hub=train")


@pytest.mark.parametrize("task", TASKS)
def test_hyper_parameters_are_the_published_ones(task: str) -> None:
    config = composed(task)
    training = config.training
    expected = {"squad_v1": (32, 3, 5e-5, 384), "squad_v2": (48, 2, 5e-5, 384), "ner": (32, 3, 5e-5, 128)}.get(
        task, (32, 3, 2e-5, 128)
    )
    assert (training.batch_size, training.epochs, training.lr, training.max_length) == expected
    assert config.task.name == task


@pytest.mark.parametrize(
    ("task", "option", "message"),
    [
        ("squad_v1", "task.answers.n_best=0", r"task.answers.n_best is 0; allowed: 1 or more"),
        ("squad_v1", "task.answers.max_answer_length=0", r"task.answers.max_answer_length is 0; allowed: 1 or more"),
        ("squad_v2", "task.answers.doc_stride=0", r"task.answers.doc_stride is 0; allowed: 1 or more"),
        ("squad_v2", "task.answers.max_query_length=-1", r"task.answers.max_query_length is -1; allowed: 1 or more"),
        ("mrpc", "task.metrics=[f2]", r"task.metrics of mrpc is 'f2'; allowed: accuracy, f1, matthews"),
        ("mrpc", "task.metrics=[]", r"task.metrics is \[\]; allowed: one or more of accuracy, f1"),
        ("mnli", "task.metrics=[accuracy,f1]", r"task.metrics of mnli is 'f1'; allowed: accuracy, matthews"),
        ("stsb", "task.metrics=[accuracy]", r"task.metrics of stsb is 'accuracy'; allowed: pearson, spearman$"),
        ("ner", "task.metrics=[exact_match]", r"task.metrics of ner is 'exact_match'; allowed: f1, precision"),
        ("sst2", "training.max_grad_norm=-1", r"training.max_grad_norm is -1.0; allowed: 0 or more"),
        ("sst2", "training.adam_eps=-1", r"training.adam_eps is -1.0; allowed: 0 or more"),
        ("sst2", "training.weight_decay=-0.1", r"training.weight_decay is -0.1; allowed: 0 or more"),
    ],
)
def test_values_that_would_fail_in_a_run_are_refused(task: str, option: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        composed(task, option)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (
            "sst2",
            ["data.test_file=t.tsv"],
            r"data.test_file is 't.tsv', which is read only with predict_test=true; add",
        ),
        ("squad_v1", ["data.test_file=t.json"], r"data.test_file is 't.json'; allowed: null, for squad_v1 has no test"),
        ("squad_v2", ["predict_test=true"], r"predict_test is True; allowed: false, for squad_v2 has no test set"),
    ],
)
def test_test_sets_that_nothing_would_read_or_that_are_not_there(task: str, options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        composed(task, *options)
    assert composed("sst2", "data.test_file=t.tsv", "predict_test=true").predict_test
