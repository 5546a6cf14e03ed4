"""Run directories written by hand, with numbers that the tests know."""

import json
import time
from pathlib import Path

OPTIONS = {
    "run_dir": "runs/a", "seed": 42, "init_from": None,
    "model": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128,
              "max_position_embeddings": 32, "vocab_size": 100, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
              "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02, "attention": "auto",
              "next_sentence": True},
    "data": {"dir": "/nowhere/shards", "sequence_length": 32, "masking": "static"},
    "batch": {"global_batch_size": 16, "micro_batch_size": 8},
    "optimizer": {"algorithm": "nvlamb", "lr": 0.004, "weight_decay": 0.01},
    "schedule": {"total_steps": 40, "warmup_proportion": 0.25},
    "checkpoint": {"every_steps": 10}, "logging": {"every_steps": 10},
}  # fmt: skip
START = 1_700_000_000.0
PRINTS = {"train": {"samples": 320, "fingerprint": "t1"}, "heldout": {"samples": 32, "fingerprint": "h1"}}


def training(step: int, loss: float, **more: object) -> dict:
    return {
        "step": step, "loss": loss + 0.7, "mlm_loss": loss, "nsp_loss": 0.7, "mlm_accuracy": 0.25, "nsp_accuracy": 0.5,
        "lr": 0.001 * step, "grad_norm": 2.0, "samples_seen": 16 * step, "skipped_steps": 0, "loss_spikes": 0,
        "tokens_per_second": 1000.0 + step, "mfu": 0.31, **more,
    }  # fmt: skip


def evaluation(step: int, loss: float) -> dict:
    return {"step": step, "eval_loss": loss + 0.69, "eval_mlm_loss": loss, "eval_nsp_loss": 0.69,
            "eval_mlm_accuracy": 0.125, "eval_nsp_accuracy": 0.5625}  # fmt: skip


def layers(step: int) -> dict:
    names = ["bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.output.dense.weight"]
    return {"step": step, **{kind: dict.fromkeys(names, 1.5 + step) for kind in
                             ("trust_ratio", "weight_norm", "update_norm")}}  # fmt: skip


def start(at: float, step: int = 0, data: dict | None = None, **more: object) -> dict:
    return {"event": "start", "time": at, "before": None, "host": "node7", "version": "abc1234", "step": step,
            "device": "H200", "ranks": 8, "compute": "bf16", "micro_batch_size": 8, "torch": "2.13.0",
            "data": data or PRINTS, **more}  # fmt: skip


def end(at: float, how: str, reason: str = "") -> dict:
    return {"event": "end", "time": at, "how": how, "reason": reason}


FINISHED = [
    evaluation(0, 4.6), training(10, 4.0), layers(10), training(20, 3.0), layers(20), evaluation(20, 3.25),
    training(30, 2.5), training(40, 2.25), evaluation(40, 2.375),
]  # fmt: skip


def make_run(directory: Path, rows: list[dict], sessions: list[dict], running: bool = False, **options: object) -> Path:
    """A directory with ``config.yaml``, ``metrics.jsonl`` and ``sessions.jsonl``, and a lock just touched if
    ``running``. JSON is YAML."""
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(json.dumps({**OPTIONS, **options}))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if sessions:
        (directory / "sessions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sessions))
    if running:
        (directory / ".lock").write_text(json.dumps({"since": time.time()}))
    return directory
