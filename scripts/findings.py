"""The findings at the top of RESULTS.md: a sentence, how sure it is, and the file under scripts/results that has it.

A sentence takes its numbers from the file when the page is written: ``{row[NAME=VALUE & NAME=VALUE][COLUMN]}`` is a
column of the one row that has these values; other fields are those of the file.
"""

from typing import Any

FINDINGS = [
    (
        "domain",
        "MiniLM-L6 continued on novels for 160 steps of 16: held-out loss "
        "{row[start=MiniLM-L6 & trained on=-][loss, novels]:.2f} to "
        "{row[start=MiniLM-L6 & trained on=novels & optimizer=nvlamb][loss, novels]:.2f} nats (AdamW "
        "{row[start=MiniLM-L6 & trained on=novels & optimizer=adamw][loss, novels]:.2f}), from random weights "
        "{row[start=random & trained on=novels & optimizer=nvlamb][loss, novels]:.2f}",
        "one seed; rates not searched",
    ),
    (
        "domain",
        "Its tasks are of other texts and lose by that: SST-2 {row[start=MiniLM-L6 & trained on=-][sst2 accuracy]} "
        "before, {row[start=MiniLM-L6 & trained on=novels & optimizer=nvlamb][sst2 accuracy]} after; SQuAD 1.1 "
        "F1 {row[start=MiniLM-L6 & trained on=-][squad f1]}, "
        "{row[start=MiniLM-L6 & trained on=novels & optimizer=nvlamb][squad f1]}; from random weights "
        "{row[start=random & trained on=-][sst2 accuracy]} and {row[start=random & trained on=-][squad f1]}",
        "median and range; 2,000 and 1,500 training samples",
    ),
    (
        "scores",
        "A 2-layer BERT, pretrained for 90 minutes and from random weights, fine-tuned: SST-2 "
        "{row[task=sst2][pretrained, median]:.1f} and {row[task=sst2][scratch, median]:.1f} %, F1 with 2,000 questions "
        "of SQuAD 1.1 {row[task=squad_v1][pretrained, median]:.1f} and {row[task=squad_v1][scratch, median]:.1f}",
        "medians of 5 seeds",
    ),
    (
        "beside_trainer_minilm",
        "MiniLM-L6 trains {row[side=Trainer: bf16, sdpa, by length][ours over it, CPU]:.1f} times the tokens of "
        "transformers.Trainer per CPU second",
        "median of 3 turns, one thread",
    ),
    (
        "beside_trainer_demo",
        "The demo's model: {row[side=Trainer: bf16, sdpa, by length, half batches][ours over it, CPU]:.1f} times those "
        "of the Trainer's best setting",
        "median of 4 turns, one thread",
    ),
    (
        "step",
        "A step of BERT-base is {row[variant=all & model=12x768][speedup_over_baseline]:.1f} times as fast as a plain "
        "float32 script; {row[variant=+ bfloat16 & model=12x768][speedup_over_baseline]:.1f} of it are bf16 and the "
        "masked positions alone",
        "one run, medians of turns",
    ),
    (
        "optimizer",
        "NVLAMB's fused CPU kernel takes {row[implementation=nvlamb/fused][over_clip_adamw_fused]:.2f} of the time "
        "of clipping and torch's fused AdamW",
        "0.84 to 1.01 in three runs",
    ),
    (
        "data_novels40",
        "Sentences to shards: {row[what=ours, all of it][processor s]:.1f} s of CPU for 39 MB, the published script "
        "{row[what=published script, all of it][processor s]:.1f} s",
        "one round; 16.6 times at 16 MB, 5.3 at 2.8",
    ),
    ("kills", "A run killed 200 times at random moments ends with the same weights, bit for bit", "200 of 200"),
    (
        "plan_published",
        "The plan's speed against NVIDIA's published BERT-large: {row[run=1 DGX A100, phase 2][error]} to "
        "{row[run=32 DGX A100, phase 2][error]} in phase 2 on A100s, "
        "{row[run=64 DGX-2H (2020), 1,024 GPUs, both phases][error]} on V100s",
        "calibrated on one figure; arithmetic",
    ),
]
"""(file without device and date, sentence, how sure)."""


class Rows:
    """Rows of a result by their values."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __getitem__(self, values: str) -> dict[str, Any]:
        """The one row with ``values``, as in ``NAME=VALUE & NAME=VALUE``. Raises ``KeyError`` if not one."""
        wanted = [pair.split("=", 1) for pair in values.split(" & ")]
        found = [row for row in self.rows if all(str(row[name]) == value for name, value in wanted)]
        if len(found) != 1:
            raise KeyError(f"{len(found)} rows with {values}")
        return found[0]


def sentence(text: str, result: dict[str, Any]) -> str:
    """A finding with its numbers."""
    return text.format(row=Rows(result["rows"]), **{k: v for k, v in result.items() if k != "rows"})
