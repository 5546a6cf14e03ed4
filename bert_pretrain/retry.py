"""Attempts at reading what a file server may give again after a while."""

import time
from collections.abc import Callable
from typing import TypeVar

from bert_pretrain.errors import OUTAGES, OutageError

Result = TypeVar("Result")
PAUSES = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 60.0, 60.0, 60.0)
"""Seconds between attempts: five minutes in all."""


def retried(
    work: Callable[[], Result],
    what: str,
    report: Callable[[str], None] = lambda _: None,
    while_waiting: Callable[[], None] = lambda: None,
) -> Result:
    """``work()``, attempted again after an ``OSError`` in ``OUTAGES``; other errors are raised at once.

    ``what`` is read, for messages to ``report``: the first failure and the recovery. ``while_waiting`` is called before
    each pause. Raises ``OutageError`` after the last attempt.
    """
    failed = False
    for pause in (*PAUSES, None):
        try:
            result = work()
        except OSError as error:
            if error.errno not in OUTAGES:
                raise
            reason = error.strerror or str(error)
            if pause is None:
                raise OutageError(
                    f"{what} cannot be read ({reason}), also after {sum(PAUSES) / 60:.0f} minutes; when the disk is "
                    "back, run the same command again"
                ) from error
            if not failed:
                report(f"{what} cannot be read now ({reason}); trying again for {sum(PAUSES) / 60:.0f} minutes")
            failed = True
            while_waiting()
            time.sleep(pause)
        else:
            if failed:
                report(f"{what} can be read again")
            return result
    raise AssertionError
