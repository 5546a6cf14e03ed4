"""Stop requests: after SIGTERM, SIGUSR1, SIGINT, SIGHUP or a time limit all ranks stop after the same step, save and
exit with status 75. Under nohup SIGHUP stays ignored.

A scheduler signals only some ranks, or each at another moment. So the trainer adds ``StopRequest.requested`` to the
counts that are all-reduced in every step anyway, and reads the sum with that step's numbers: no extra collective, no
wait for the device, the same decision on every rank. A process without others stops before its next micro-batch, and
nothing of that step is kept. An evaluation does as the trainer does, with each of its batches; an interrupted one is
rerun on resume. A second SIGINT kills the process at once, which loses nothing: files get their final names only when
they are complete.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
_INTERRUPTED = 128 + signal.SIGINT


def handle_stop_signals(handler: Callable[[int, FrameType | None], None]) -> None:
    """Set ``handler`` for ``STOP_SIGNALS``, but leave a SIGHUP alone that is ignored (nohup)."""
    for number in STOP_SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


class StoppedInStep(Exception):
    """A step was given up on request, before its update."""


class StopRequest:
    """Whether this process was asked to stop, by a signal or by a time limit."""

    def __init__(self) -> None:
        self._received = False
        self._deadline = math.inf

    @property
    def requested(self) -> bool:
        """True from the first signal or from the deadline on."""
        return self._received or time.monotonic() >= self._deadline

    def request(self) -> None:
        """Request a stop, as a signal does."""
        self._received = True

    def stop_after(self, minutes: float | None) -> None:
        """Set the time limit, counted from now; None: no limit."""
        self._deadline = math.inf if minutes is None else time.monotonic() + 60.0 * minutes

    def install_handlers(self) -> "StopRequest":
        """Handle ``STOP_SIGNALS`` from now on. Call it in the main thread.

        A thread reads the signals from a pipe: the main thread may be blocked in a collective, where Python runs no
        signal handlers.
        """
        read_fd, write_fd = os.pipe()
        os.set_blocking(write_fd, False)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        handle_stop_signals(lambda *_: None)
        threading.Thread(target=self._read_signals, args=(read_fd,), name="signals", daemon=True).start()
        return self

    def _read_signals(self, read_fd: int) -> None:
        interrupts = 0
        while True:
            for number in os.read(read_fd, 64):
                if number in STOP_SIGNALS:
                    self.request()
                interrupts += number == signal.SIGINT
                if interrupts > 1:
                    os._exit(_INTERRUPTED)
