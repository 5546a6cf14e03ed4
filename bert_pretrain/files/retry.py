"""Reads that are tried again while a disk or file server does not answer, and messages for reads that fail."""

import errno
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from bert_pretrain.errors import OUTAGES, ConfigError, OutageError, number_of, on_one_line
from bert_pretrain.launch_environment import local_rank

Result = TypeVar("Result")
PAUSES = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 60.0, 60.0, 60.0)
"""Seconds between attempts: five minutes in all."""


def retried(
    work: Callable[[], Result],
    what: str,
    report: Callable[[str], None] = lambda _: None,
    while_waiting: Callable[[], None] = lambda: None,
    action: str = "read",
) -> Result:
    """``work()``, attempted again after an ``OSError`` in ``OUTAGES``; other errors are raised at once.

    ``what`` is read, or what ``action`` says: for messages to ``report``, the first failure and the recovery.
    ``while_waiting`` is called before each pause. Raises ``OutageError`` after the last attempt.
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
                    f"{what} cannot be {action} ({reason}), also after {sum(PAUSES) / 60:.0f} minutes; when it is "
                    "back, run the same command again"
                ) from error
            if not failed:
                report(f"{what} cannot be {action} now ({reason}); trying again for {sum(PAUSES) / 60:.0f} minutes")
            failed = True
            while_waiting()
            time.sleep(pause)
        else:
            if failed:
                report(f"{what} can be {action} again")
            return result
    raise AssertionError


class DamagedError(ConfigError):
    """A file whose content is wrong. Read once more, because a network file system may have cached a bad page."""


def say(text: str) -> None:
    """Print a line to standard error, on the first process of a node."""
    if local_rank() == 0:
        with suppress(OSError):
            print(text, file=sys.stderr, flush=True)


def read_patiently(
    work: Callable[[], Result], what: str, advice: str, errors: tuple[type[Exception], ...] = (OSError,)
) -> Result:
    """``work()``, which reads ``what``: ``retried``, and once more after a ``DamagedError``.

    ``errors``: what it raises if it cannot read, told apart by ``read_error``; ``advice``: what to do about a missing
    or damaged file. Raises ``ConfigError``.
    """

    def attempt() -> Result:
        try:
            return work()
        except ConfigError:
            raise
        except errors as error:
            raise read_error(error, what, advice) from None

    try:
        return retried(attempt, what, say)
    except DamagedError:
        return retried(attempt, what, say)


def read_error(error: Exception, what: str, advice: str) -> OSError | ConfigError:
    """``error`` as an outage (an ``OSError``), or the user's mistake, or damage: the same one for every library.

    HDF5 states the number of the system's error in its text only. An error without a number is damage.
    """
    number = number_of(error)
    reason = os.strerror(number) if number else on_one_line(error)
    if number in OUTAGES:
        return OSError(number, reason)
    if number in (errno.ENOENT, errno.ENOTDIR):
        return ConfigError(f"{what} cannot be read: it is missing; {advice}")
    if number in (errno.EACCES, errno.EPERM):
        return ConfigError(f"{what} cannot be read: {reason}; give this user permission to read it")
    if number in (errno.EMFILE, errno.ENFILE):
        return ConfigError(f"{what} cannot be opened: {reason}; allow more open files, with ulimit -n 65536")
    if number:
        return ConfigError(f"{what} cannot be read: {reason}")
    return DamagedError(f"{what} cannot be read: it is damaged ({reason}); {advice}")
