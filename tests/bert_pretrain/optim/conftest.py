"""The kernels of NVLAMB that the tests of its equations and of its state run on."""

import pytest
import torch

from bert_pretrain.optim import nvlamb_cpu, nvlamb_foreach


@pytest.fixture(params=["reference", "foreach", "foreach_pieces", "foreach_masked", "fused", "fused_pieces"])
def kernel(request, monkeypatch):
    """Each kernel; also with large layers cut into pieces, and foreach as on a device, where the host does not wait."""
    if request.param == "fused_pieces":
        monkeypatch.setattr(nvlamb_cpu, "PIECE", 1000)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    if request.param == "foreach_pieces":
        monkeypatch.setattr(nvlamb_foreach, "CPU_RUN", 4096)
    if request.param == "foreach_masked":
        monkeypatch.setattr(nvlamb_foreach, "HOST_DECIDES", ())
    return request.param.partition("_")[0]
