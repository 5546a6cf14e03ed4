"""Evaluation on the held-out split."""

from collections.abc import Callable

import numpy as np
import torch

from bert_pretrain.data.collate import MicroBatch
from bert_pretrain.data.dataset import ShardSet
from bert_pretrain.data.loader import heldout_batches
from bert_pretrain.distributed.preemption import StopRequest
from bert_pretrain.distributed.world import World
from bert_pretrain.model.bert import PretrainingModel, PretrainingSums
from bert_pretrain.training.metrics import Row
from bert_pretrain.training.step_result import without_next_sentence

_COLUMNS = 6  # PretrainingSums, masked tokens, samples


def evaluate(
    model: PretrainingModel, heldout: ShardSet, micro_batch_size: int, world: World, stop: StopRequest
) -> Row | None:
    """Mean losses and accuracies over the whole held-out split, in float32, equal to those of plain ``transformers``.

    None if a rank was asked to stop meanwhile.
    """
    sums = sum_losses(model, heldout, micro_batch_size, world, stop)
    return None if sums is None else mean_losses(sums[0], model.next_sentence)


def mean_losses(sums: list[float], next_sentence: bool) -> Row:
    """Losses and accuracies of a row of ``sum_losses``, those of the next sentence on request."""
    mlm, nsp, mlm_correct, nsp_correct, masked, samples = sums
    masked = max(masked, 1.0)
    row = {
        "eval_loss": mlm / masked + nsp / samples,
        "eval_mlm_loss": mlm / masked,
        "eval_nsp_loss": nsp / samples,
        "eval_mlm_accuracy": mlm_correct / masked,
        "eval_nsp_accuracy": nsp_correct / samples,
    }
    return row if next_sentence else without_next_sentence(row)


@torch.no_grad()
def sum_losses(
    model: PretrainingModel,
    heldout: ShardSet,
    micro_batch_size: int,
    world: World,
    stop: StopRequest,
    sources: np.ndarray | None = None,
    report: Callable[[int], None] = lambda _: None,
) -> list[list[float]] | None:
    """The ``PretrainingSums``, masked tokens and samples of the held-out split; None if a rank was asked to stop.

    With ``sources``, the number of each sample's corpus, (N,), the same of each corpus in the rows that follow.
    ``report`` gets the number of samples that this rank has done, after every batch.

    Stop requests are all-reduced with each batch and read one batch later, so that the device never waits for the host,
    and all ranks return after the same batch.
    """
    model.eval()
    corpora = 0 if sources is None else 1 + int(sources.max())
    totals = torch.zeros((1 + corpora, _COLUMNS), dtype=torch.float64, device=world.device)
    previous_requests = torch.zeros((), device=world.device)
    batches = heldout_batches(heldout, micro_batch_size, world.rank, world.size)
    done = first = heldout.samples * world.rank // world.size
    largest_part = -(-heldout.samples // world.size)
    for _ in range(-(-largest_part // micro_batch_size)):  # the same number on all ranks; some have a batch less
        world.report_progress()
        requests = world.sum(torch.tensor(float(stop.requested)).to(world.device, non_blocking=True))
        with world.busy("reading the held-out shards"):
            batch = next(batches, None)
        if batch is not None:
            size = len(batch.input_ids)
            if sources is None:
                inputs = batch.to(world.device)
                _add(totals[0], model(*inputs.tensors()), inputs.masked_labels, size)
            else:
                _add_by_source(totals, model, batch, torch.from_numpy(sources[done : done + size]), world.device)
            done += size
            report(done - first)
        if previous_requests.item() > 0:
            model.train()
            return None
        previous_requests = requests
    model.train()
    found: list[list[float]] = world.sum(totals).tolist()
    return found


def _add(totals: torch.Tensor, out: PretrainingSums, labels: torch.Tensor, samples: int) -> None:
    """Add what the model makes of some samples, whose masked tokens have the ``labels``, to ``totals`` (6,)."""
    totals[:4] += torch.stack([part.double() for part in out])
    totals[4] += (labels >= 0).sum()
    totals[5] += samples


def _add_by_source(
    totals: torch.Tensor, model: PretrainingModel, batch: MicroBatch, source: torch.Tensor, device: torch.device
) -> None:
    """Add the sums of ``batch`` to the first of ``totals`` (1 + corpora, 6), those of each corpus to its own.

    ``source`` (B,): the corpus of each sample. The encoder runs once, on the whole batch, as without corpora.
    """
    inputs, (samples, length) = batch.to(device), batch.input_ids.shape
    labels, next_sentence = inputs.masked_labels, inputs.next_sentence_labels
    places = inputs.segment_ids, inputs.masked_positions
    x = model.hidden_states(
        inputs.input_ids, inputs.attention_mask, *places
    )  # (B + M, H), or (M, H) without a next-sentence head
    _add(totals[0], model.losses(x, labels, next_sentence), labels, samples)
    owner, real = source[batch.masked_positions // length], batch.masked_labels >= 0
    for number in source.unique().tolist():
        chosen = (source == number).nonzero().squeeze(1)
        tokens = ((owner == number) & real).nonzero().squeeze(1)
        rows = torch.cat([chosen, samples + tokens]) if model.next_sentence else tokens
        out = model.losses(x[rows], labels[tokens], next_sentence[chosen])
        _add(totals[1 + number], out, labels[tokens], len(chosen))
