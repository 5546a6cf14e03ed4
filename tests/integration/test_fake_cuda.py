"""Whole runs on fake CUDA tensors: every tensor on its device, nothing read back in a step, nothing that grows.

All cases run in one child process, because the stand-in for CUDA must be loaded before torch. What needs the numbers in
the tensors cannot be run so: files of checkpoints, ``init_from``, dynamic masking's tokenizer, compiled code, and the
kernels themselves. ``scripts/prove_fake_cuda.py`` runs every recipe with every optimizer, kernel and precision.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import HANGS, ROOT
from tests.fake_cuda import stand_in


def case(name: str, *words: str, **more: Any) -> dict[str, Any]:
    """``name`` is that of the recipe unless ``words`` give another."""
    return {"name": name, "words": [f"recipe={name}", *words], **more}


CASES = [
    case("demo", "precision.compute=bf16", "optimizer.kernel=foreach", "logging.layers_every_steps=1",
         "model.num_hidden_layers=2", "batch.global_batch_size=10", sources=True),
    case("demo_64k", "precision.compute=fp16", "optimizer.kernel=fused", "speed.packing=true", resume=True,
         skipped=[2], evaluate=False),
    case("bert_base_1gpu", "precision.compute=fp32", "optimizer.kernel=auto", evaluate=False),
    case("bert_large_64k_phase1", "precision.compute=fp16", "optimizer.kernel=foreach", "speed.group_by_length=false",
         skipped=[3], evaluate=False),
    case("bert_large_64k_phase1_published", "precision.compute=bf16", "optimizer.kernel=fused", evaluate=False),
    case("bert_large_64k_phase2", "precision.compute=bf16", "optimizer=lars", "speed.packing=true", evaluate=False),
    case("bert_large_64k_phase2_published", "precision.compute=fp16", "optimizer=adamw", resume=True, evaluate=False),
    case("domain", "model=base", "precision.compute=bf16", "optimizer.kernel=foreach",
         "optimizer.freeze=[bert.embeddings.*]"),
    case("study_base", "precision.compute=fp32", "optimizer=adam", "model.attention=eager", spikes=[3],
         evaluate=False),
    case("study_toy", "precision.compute=bf16", "optimizer=sgd"),
    *(case(name, "recipe=demo", "precision.compute=bf16", f"optimizer={name}", evaluate=False)
      for name in ("muon", "muonh", "adamh", "schedule_free_adamw")),
    case("muon_nvlamb", "recipe=demo", "precision.compute=bf16", "optimizer=muon_nvlamb",
         "optimizer.others.kernel=fused", evaluate=False),
    case("study_small", "precision.compute=bf16", "optimizer=adamw", "speed.packing=false", evaluate=False),
    case("transformers", "recipe=demo", "precision.compute=fp16", "optimizer=lamb", "optimizer.kernel=foreach",
         "speed.last_layer_rows=false", "speed.fused_qkv=false", "speed.pad_vocabulary=false",
         "speed.fast_dropout=false", evaluate=False),
]  # fmt: skip
FOUND = {
    "item": "DeviceFault: the host waits for the device: a number is read",
    "CPU tensor": "DeviceFault: add.Tensor has tensors on cpu and cuda",
    "0-d CPU tensor": "DeviceFault: add.Tensor has tensors on cpu and cuda",
    "foreach with a 0-d CUDA tensor": "DeviceFault: the host waits for the device: a number is read",
    "foreach with a 0-d CPU tensor": "DeviceFault: _foreach_mul_.Tensor has tensors on cpu and cuda",
    "nonzero": "DeviceFault: the host waits for the device: nonzero",
    "boolean mask": "DeviceFault: the host waits for the device: index.Tensor",
    "list of places": "DeviceFault: the host waits for the device: a copy of 16 bytes from the host",
    "tensor of a number": "DeviceFault: the host waits for the device: a copy of 4 bytes from the host",
    "copy that is not pinned": "DeviceFault: the host waits for the device: a copy of 4,194,304 bytes from memory",
    "copy to the host": "DeviceFault: the host waits for the device: a copy of 32 bytes to the host",
    "early read": "DeviceFault: the host waits for the device: a number is read",
    "synchronize": "DeviceFault: the host waits for the device: torch.cuda.synchronize",
}
"""What the guard says of each of ``worker.FAULTS`` in a step."""
GROWTH = {
    "kept tensor": "DeviceFault: storages and bytes grow",
    "buffer on the CPU": "DeviceFault: extra is on cpu",
}
"""Found at the end of a run."""
TOY = "recipe=study_toy", "precision.compute=bf16", "optimizer=sgd"
FAULTY = [
    case("faults", *TOY, faults=list(FOUND)),
    *(case(fault, *TOY, fault=fault, evaluate=False) for fault in GROWTH),
]
BY_DESIGN = [case("reference", "recipe=study_toy", "precision.compute=fp32", "optimizer.kernel=reference")]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The result of each case by its name."""
    if reason := stand_in.missing():
        pytest.skip(f"a fake CUDA device cannot be built: {reason}")
    folder = tmp_path_factory.mktemp("fake_cuda")
    return {result["name"]: result for result in run_cases([*CASES, *FAULTY, *BY_DESIGN], folder)}


def run_cases(cases: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    given, found = folder / "cases.json", folder / "results.json"
    given.write_text(json.dumps(cases))
    command = [sys.executable, "-m", "tests.fake_cuda.worker", str(given), str(found)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANGS, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(found.read_text())


@pytest.mark.parametrize("given", CASES, ids=lambda given: given["name"])
def test_a_run(results: dict[str, dict[str, Any]], given: dict[str, Any]) -> None:
    result, skipped = results[given["name"]], len(given.get("skipped", ()))
    assert result["outcome"] == "passed"
    assert (result["steps"], result["skipped"]) == (4 + skipped, skipped)
    assert result["spikes"] == len(given.get("spikes", ()))
    assert result["saves"] == (2 if given.get("resume") else 1)
    assert result.get("resumed", 4) == 4
    assert result.get("corpora", 3) == 3
    assert result["slow_lists"] == {}
    kernel = next((word for word in given["words"] if "kernel=" in word), "")
    updates = result["steps"] + result.get("resumed", 0) + kernel.endswith("auto")  # which tries the kernel first
    assert result["triton"] == (3 * updates if kernel.endswith(("fused", "auto")) else 0)


def test_every_recipe_has_a_case() -> None:
    recipes = {path.stem for path in (ROOT / "configs/recipe").glob("*.yaml")}
    assert recipes <= {one["name"] for one in CASES}


@pytest.mark.parametrize("fault", FOUND)
def test_a_fault_in_a_step_is_found(results: dict[str, dict[str, Any]], fault: str) -> None:
    assert results["faults"]["found"][fault].startswith(FOUND[fault])


@pytest.mark.parametrize("fault", GROWTH)
def test_a_fault_over_a_run_is_found(results: dict[str, dict[str, Any]], fault: str) -> None:
    assert results[fault]["outcome"].startswith(GROWTH[fault])


def test_the_reference_kernel_reads_at_every_layer(results: dict[str, dict[str, Any]]) -> None:
    assert results["reference"]["outcome"].startswith("DeviceFault: the host waits for the device: a number is read")
