"""``bench optimizer`` with the LAMB of timm, pytorch_optimizer and apex beside NVLAMB's kernels, where installed.

pip install --no-deps timm pytorch_optimizer          # used only here
python scripts/bench_other_lambs.py models=[base]     # options as in bert-pretrain bench optimizer
"""

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch

from bert_pretrain.bench.optimizer import Implementation, run, stepper
from bert_pretrain.bench.options import BenchOptimizerConfig
from bert_pretrain.optim.nvlamb_apex import HAS_APEX
from bert_pretrain.options.config_loading import load_config


def timm() -> dict[str, Implementation]:
    """timm's LAMB configured as NVLAMB (gradient clipping at 1, trust ratio for every layer), per tensor and foreach.

    ``import timm`` needs torchvision; the optimizers do not, so their folder is imported as a separate package.
    """
    spec = find_spec("timm")
    assert spec is not None
    assert spec.origin is not None
    package = ModuleType("timm_optim")
    package.__path__ = [str(Path(spec.origin).parent / "optim")]
    sys.modules["timm_optim"] = package
    lamb = importlib.import_module("timm_optim.lamb").Lamb
    options = {"lr": 1e-4, "weight_decay": 0.01, "max_grad_norm": 1.0, "always_adapt": True}
    return {
        "timm": (None, stepper(lamb, foreach=False, **options)),
        "timm/foreach": (104.0, stepper(lamb, foreach=True, **options)),
    }


def pytorch_optimizer() -> dict[str, Implementation]:
    """pytorch_optimizer's LAMB with pre-normalisation, per tensor and foreach."""
    lamb = importlib.import_module("pytorch_optimizer").Lamb
    options = {"lr": 1e-4, "weight_decay": 0.01, "pre_norm": True}
    return {
        "pytorch_optimizer": (None, stepper(lamb, foreach=False, **options)),
        "pytorch_optimizer/foreach": (None, stepper(lamb, foreach=True, **options)),
    }


def main() -> None:
    """Measure, print the table and write optimizer.json."""
    config = load_config("bench_optimizer", sys.argv[1:], BenchOptimizerConfig)
    others: dict[str, Implementation] = {}
    for package, variants in (("timm", timm), ("pytorch_optimizer", pytorch_optimizer)):
        if find_spec(package) is None:
            print(f"skipped {package}: not installed (pip install --no-deps {package})")
        else:
            others |= variants()
    if HAS_APEX and config.device != "cpu" and torch.cuda.is_available():
        fused_lamb = importlib.import_module("apex.optimizers").FusedLAMB
        others["apex/fused_lamb"] = 52.0, stepper(fused_lamb, lr=1e-4, use_nvlamb=True)
    run(config, others)


if __name__ == "__main__":
    main()
