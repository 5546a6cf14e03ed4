"""The model on samples that it is not trained on."""

import torch

from bert_pretrain.data import ShardSet
from bert_pretrain.distributed import World
from bert_pretrain.loader import heldout_batches
from bert_pretrain.metrics import Row
from bert_pretrain.model import PretrainingModel


@torch.no_grad()
def evaluate(model: PretrainingModel, heldout: ShardSet, micro_batch_size: int, world: World) -> Row:
    """Losses and accuracies over the whole held-out split, in float32, as plain ``transformers`` gives them."""
    model.eval()
    totals = torch.zeros(6, dtype=torch.float64, device=world.device)
    for micro_batch in heldout_batches(heldout, micro_batch_size, world.rank, world.size):
        world.moved()
        out = model(*micro_batch.to(world.device).tensors())
        totals[:4] += torch.stack([part.double() for part in out])
        totals[4] += (micro_batch.masked_labels >= 0).sum()
        totals[5] += len(micro_batch.input_ids)
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
