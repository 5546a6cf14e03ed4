"""Evaluation on the held-out split."""

import torch

from bert_pretrain.data.dataset import ShardSet
from bert_pretrain.data.loader import heldout_batches
from bert_pretrain.distributed.preemption import StopRequest
from bert_pretrain.distributed.world import World
from bert_pretrain.model.bert import PretrainingModel
from bert_pretrain.training.metrics import Row
from bert_pretrain.training.step_result import without_next_sentence


@torch.no_grad()
def evaluate(
    model: PretrainingModel, heldout: ShardSet, micro_batch_size: int, world: World, stop: StopRequest
) -> Row | None:
    """Mean losses and accuracies over the whole held-out split, in float32, equal to those of plain ``transformers``.

    None if a rank was asked to stop meanwhile: stop requests are all-reduced with each batch and read one batch later,
    so that the device never waits for the host, and all ranks return after the same batch.
    """
    model.eval()
    totals = torch.zeros(6, dtype=torch.float64, device=world.device)
    previous_requests = torch.zeros((), device=world.device)
    batches = heldout_batches(heldout, micro_batch_size, world.rank, world.size)
    largest_part = -(-heldout.samples // world.size)
    for _ in range(-(-largest_part // micro_batch_size)):  # the same number on all ranks; some have a batch less
        world.report_progress()
        requests = world.sum(torch.tensor(float(stop.requested)).to(world.device, non_blocking=True))
        micro_batch = next(batches, None)
        if micro_batch is not None:
            out = model(*micro_batch.to(world.device).tensors())
            totals[:4] += torch.stack([part.double() for part in out])
            totals[4] += (micro_batch.masked_labels >= 0).sum()
            totals[5] += len(micro_batch.input_ids)
        if previous_requests.item() > 0:
            model.train()
            return None
        previous_requests = requests
    model.train()
    mlm, nsp, mlm_correct, nsp_correct, masked, samples = world.sum(totals).tolist()
    masked = max(masked, 1.0)
    row = {
        "eval_loss": mlm / masked + nsp / samples,
        "eval_mlm_loss": mlm / masked,
        "eval_nsp_loss": nsp / samples,
        "eval_mlm_accuracy": mlm_correct / masked,
        "eval_nsp_accuracy": nsp_correct / samples,
    }
    return row if model.next_sentence else without_next_sentence(row)
