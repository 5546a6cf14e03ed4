"""The model on samples that it is not trained on."""

import torch

from bert_pretrain.data.dataset import ShardSet
from bert_pretrain.data.loader import heldout_batches
from bert_pretrain.distributed.preemption import StopRequest
from bert_pretrain.distributed.world import World
from bert_pretrain.model.bert import PretrainingModel
from bert_pretrain.training.metrics import Row


@torch.no_grad()
def evaluate(
    model: PretrainingModel, heldout: ShardSet, micro_batch_size: int, world: World, stop: StopRequest
) -> Row | None:
    """Losses and accuracies over the whole held-out split, in float32, as plain ``transformers`` gives them.

    None where a rank was asked to stop meanwhile: all ranks leave behind the same batch. They add up who was asked
    with every batch, and read the sum one batch late, so that the device has the next one to do.
    """
    model.eval()
    totals = torch.zeros(6, dtype=torch.float64, device=world.device)
    before = torch.zeros((), device=world.device)
    batches = heldout_batches(heldout, micro_batch_size, world.rank, world.size)
    largest_share = -(-heldout.samples // world.size)
    for _ in range(-(-largest_share // micro_batch_size)):  # as often on every rank, though one may have a batch less
        world.report_progress()
        asked = world.sum(torch.tensor(float(stop.requested)).to(world.device, non_blocking=True))
        micro_batch = next(batches, None)
        if micro_batch is not None:
            out = model(*micro_batch.to(world.device).tensors())
            totals[:4] += torch.stack([part.double() for part in out])
            totals[4] += (micro_batch.masked_labels >= 0).sum()
            totals[5] += len(micro_batch.input_ids)
        if before.item() > 0:
            model.train()
            return None
        before = asked
    model.train()
    mlm, nsp, mlm_correct, nsp_correct, masked, samples = world.sum(totals).tolist()
    masked = max(masked, 1.0)
    return {
        "eval_loss": mlm / masked + nsp / samples,
        "eval_mlm_loss": mlm / masked,
        "eval_nsp_loss": nsp / samples,
        "eval_mlm_accuracy": mlm_correct / masked,
        "eval_nsp_accuracy": nsp_correct / samples,
    }
