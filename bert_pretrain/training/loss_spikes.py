"""Numerical trouble: gradients that are not finite, a loss scale that collapses, losses that spike.

A spike is measured against a running scale: the mean of the losses, and the mean distance between neighbouring losses,
which a long descent leaves alone; both forget exponentially. What lies further above the mean than ``spike_deviations``
such distances is a spike. It counts in the distance as that bound and in the mean as at most twice the mean, so that
one outlier does not hide the next, while a lasting change becomes the new normal. All of it follows from the losses
alone and is kept in the checkpoint: a resumed run judges as the undisturbed one.
"""

from dataclasses import asdict, dataclass

from bert_pretrain.errors import DivergedError

_MEMORY = 0.98  # of a step in the next: the scale looks back about 50 steps
_LEARNING = 50  # losses before the scale is trusted
_COLLAPSED = 2.0**-8  # a loss scale that has shrunk the gradients this far and still sees them overflow


@dataclass
class LossSpikeDetector:
    """What the losses and norms of a run have been so far; a part of its progress."""

    mean: float = 0.0
    deviation: float = 0.0
    """Mean distance between neighbouring losses."""
    last: float = 0.0
    seen: int = 0
    """Losses in the scale."""
    spikes: int = 0
    skipped_in_a_row: int = 0

    def state_dict(self) -> dict[str, float]:
        """For the checkpoint."""
        return asdict(self)

    def note_applied(self, loss: float, spike_deviations: float) -> str | None:
        """Take the loss of an applied step into the scale; what is to be said where it is a spike."""
        self.skipped_in_a_row = 0
        spike = self.seen >= _LEARNING and loss > self.mean + spike_deviations * self.deviation
        said = f"loss {loss:.4f} is a spike: before it {self.mean:.4f} +- {self.deviation:.4f}" if spike else None
        self.spikes += spike
        distance = abs(loss - self.last) if self.seen else 0.0
        if self.seen >= _LEARNING:
            distance = min(distance, spike_deviations * self.deviation)
            loss = min(loss, 2.0 * self.mean)
        keep = min(_MEMORY, self.seen / (self.seen + 1))  # a plain mean until there is enough to forget
        self.deviation = keep * self.deviation + (1 - keep) * distance
        self.mean = keep * self.mean + (1 - keep) * loss
        self.last = loss
        self.seen += 1
        return said

    def note_skipped(self, step: int, scale: float, scaled: bool, limit: int) -> None:
        """Count a step that was skipped after ``step``. Raises ``DivergedError`` where it is time to give up."""
        self.skipped_in_a_row += 1
        if scaled and scale < _COLLAPSED:
            raise DivergedError(
                f"the loss scale collapsed to {scale:.3g} after step {step}: {self.skipped_in_a_row} steps in a row "
                "overflowed however small the loss was made, so the loss itself or a weight is not finite; use "
                "precision.compute=bf16 or fp32, or a lower optimizer.lr, and go on from a checkpoint"
            )
        if self.skipped_in_a_row >= limit:
            raise DivergedError(
                f"{self.skipped_in_a_row} steps in a row had a gradient that is not finite, after step {step} "
                "(numerics.max_skipped_in_a_row); lower optimizer.lr or use precision.compute=bf16, and go on from a "
                "checkpoint"
            )
