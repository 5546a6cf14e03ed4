"""The learning rate as a pure function of the number of updates applied so far.

Linear warm-up, then one of four shapes:

- ``polynomial``: decay of the remaining share of the steps after warm-up. NVIDIA's published BERT code counts the decay
  from the first update instead, so that its rate drops by a factor sqrt(1 - w) at the end of warm-up (-15.4 % in phase
  1), is 0 in the last update and NaN after it.
- ``wsd``: warm-up, stable, decay (Hu et al., MiniCPM, arXiv 2404.06395, section 4). The decay is linear or 1-sqrt
  (Haegele et al., arXiv 2405.18392, section 3).
- ``cosine``: half a period, without restarts (Loshchilov and Hutter, SGDR, arXiv 1608.03983, equation 5).
- ``constant``.
"""

import math

from bert_pretrain.optim.options import ScheduleConfig


def learning_rate(k: int, base: float, schedule: ScheduleConfig) -> float:
    """Return the rate of the next update after ``k`` applied updates (k = 0 before the first).

    While k < W, ``base (k+1)/W``. Then ``base`` times (f: ``final_share``, T: total steps, D: decay steps)

    - ``polynomial``: ``((T-k)/(T-W))^d``
    - ``wsd``: 1 while k < T-D, then ``f + (1-f) s`` with s = ``1-x`` or ``1-sqrt(x)``, x = ``(k-(T-D))/D``
    - ``cosine``: ``f + (1-f) (1 + cos(pi x))/2`` with x = ``(k-W)/(T-W)``
    - ``constant``: 1

    ``polynomial`` with ``decay_from=start``, with p = (k+1)/T: ``base p/w`` while p < w, then ``base (1-p)^d``.
    At least 0 and never NaN for ``base`` >= 0: k is taken as at least 0 and at most T.
    """
    total, warmup = schedule.total_steps, schedule.warmup
    k = min(max(k, 0), total)
    if schedule.shape == "polynomial" and schedule.decay_from == "start":
        return _from_start(k, base, schedule)
    if k < warmup:
        return base * ((k + 1) / warmup)
    if schedule.shape == "polynomial":
        remaining = (total - k) / (total - warmup) if k < total else 0.0
        return base * remaining ** (schedule.degree or 0.0)
    return base * _share_of_peak(k, schedule)


def _from_start(k: int, base: float, schedule: ScheduleConfig) -> float:
    p = (k + 1) / schedule.total_steps
    w = schedule.warmup_proportion if schedule.warmup_steps is None else schedule.warmup_steps / schedule.total_steps
    if w and p < w:
        return base * (p / w)
    return base * max(0.0, 1 - p) ** (schedule.degree or 0.0)


def _share_of_peak(k: int, schedule: ScheduleConfig) -> float:
    """The rate after warm-up as a share of the peak, for the shapes other than polynomial."""
    total, final = schedule.total_steps, schedule.final_share
    if schedule.shape == "cosine":
        remaining = (1 + math.cos(math.pi * (k - schedule.warmup) / max(1, total - schedule.warmup))) / 2
    elif schedule.shape == "wsd" and k > (stable := total - schedule.decay):
        x = (k - stable) / schedule.decay
        remaining = 1 - x if schedule.decay_form == "linear" else 1 - math.sqrt(x)
    else:
        return 1.0
    return final + (1 - final) * remaining


def learning_rate_table(base: float, schedule: ScheduleConfig) -> list[float]:
    """Return ``learning_rate`` for k = 0 ... T.

    As a tensor on the device, indexed by a count on the device, it gives the rate without a synchronisation.
    """
    return [learning_rate(k, base, schedule) for k in range(schedule.total_steps + 1)]


def changed_past(before: ScheduleConfig, now: ScheduleConfig, base: float, applied: int) -> str:
    """Why a run with ``applied`` updates under ``before`` cannot go on under ``now``; empty if it can.

    It can if the rate of every update applied so far is the same, and the new schedule does not end before them.
    """
    if applied > now.total_steps:
        return f"{applied} steps are done already"
    for k in range(applied):
        old, new = learning_rate(k, base, before), learning_rate(k, base, now)
        if old != new:
            reason = f"this changes the learning rate of step {k + 1}, which is done, from {old:.6g} to {new:.6g}"
            if now.warmup_steps is None and now.warmup != before.warmup:
                return f"{reason}; schedule.warmup_steps={before.warmup} keeps the warm-up where it was"
            return reason + f"; init_progress=keep goes on from a checkpoint of step {k} or before" * (k > 0)
    return ""
