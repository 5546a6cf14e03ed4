"""The hours of ``study batch_scaling`` on H200s, by ``bert-pretrain plan``, before anything runs.

    python scripts/plan_study.py
    python scripts/plan_study.py --gpu h100 --devices 1 8 64

Prints a table: for each batch size the steps of a run that uses all its samples, and the hours of such a run and of
all runs of all optimizers, by number of devices. It is what the study takes at most, but for a search that tries more
than three rates: a run ends at the target, and in the search with the steps of the best rate so far. The plan counts
neither evaluations nor the matrix products of Muon.
"""

from types import SimpleNamespace
from typing import Any

import repository_root  # noqa: F401  makes bert_pretrain importable
from results_file import argument_parser

from bert_pretrain.options.config_loading import load_config
from bert_pretrain.plan.run import PlanConfig, scaling_of
from bert_pretrain.study.options import StudyConfig
from bert_pretrain.study.runs import Runs

LEAST_TRIES = 3
"""Learning rates, so that the best has a neighbour on both sides."""


def plan(study: StudyConfig, gpu: str, devices: list[int]) -> list[dict[str, str]]:
    """A row per batch size, and their sum. The plan does not tell optimizers apart; the baseline stands for all."""
    target, runs = study.chosen.target, len(study.chosen_arms) * (LEAST_TRIES + len(study.chosen.seeds))
    assert target is not None
    where: Any = SimpleNamespace()
    compose = Runs(study, where, where)
    rows, sums = [], dict.fromkeys(devices, 0.0)
    for batch in target.batch_sizes:
        steps = study.chosen.samples // batch
        words = compose.words(target.baseline, [f"batch.global_batch_size={batch}", f"schedule.total_steps={steps}"])
        config = load_config("plan", [*words, f"gpu={gpu}"], PlanConfig)
        assert config.gpu is not None
        row = {"batch": f"{batch:,}", "steps": f"{steps:,}"}
        for count in devices:
            hours = scaling_of(config, config.gpu).step(batch, count).total * steps / 3600
            sums[count] += runs * hours
            row |= {f"run on {count}": f"{hours:.2f} h", f"all on {count}": f"{runs * hours:,.0f} h"}
        rows.append(row)
    total = {f"all on {count}": f"{hours:,.0f} h" for count, hours in sums.items()}
    return [*rows, {name: "all" if name == "batch" else total.get(name, "") for name in rows[0]}]


def main() -> None:
    """Print the table as Markdown."""
    parser = argument_parser(__doc__)
    parser.add_argument("--gpu", default="h200", help="a name under configs/gpu")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8], help="numbers of devices")
    given = parser.parse_args()
    words = ["study=batch_scaling", "scale=base", "out_dir=none", "device=cuda"]
    study = load_config("study", words, StudyConfig)
    rows = plan(study, given.gpu, given.devices)
    runs = f"{len(study.chosen_arms)} optimizers, {LEAST_TRIES} rates and {len(study.chosen.seeds)} seeds each"
    print(f"{study.name} at scale={study.scale}, {runs}, on {given.gpu}\n")
    print("| " + " | ".join(rows[0]) + " |\n" + "|" + " --- |" * len(rows[0]))
    print("\n".join("| " + " | ".join(row.values()) + " |" for row in rows))


if __name__ == "__main__":
    main()
