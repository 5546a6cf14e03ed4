"""Asked to leave: after SIGTERM, SIGUSR1, SIGINT or a time limit every rank stops after the same step, saves, and ends
with status 75.

A scheduler sends the signal to some ranks, or to each at another moment. The trainer adds ``StopRequest.requested`` to
the counts that the ranks reduce in every step anyway, and reads the sum with the numbers of that step: no further
collective, nothing waits for the device, and every rank learns of it at the same place. An evaluation does likewise
with each of its batches; one that was left is done when the run goes on. A second SIGINT ends the process at once;
nothing is harmed, since files get their names only when they are whole.
"""

import os
import signal
import threading
import time

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
EXIT_STOPPED = 75
"""Exit status of a run that was asked to stop and can go on (EX_TEMPFAIL of sysexits.h): start it again."""
_INTERRUPTED = 128 + signal.SIGINT


class StopRequest:
    """Whether this process was asked to stop, by a signal or because its ``minutes`` are over."""

    def __init__(self) -> None:
        self._signalled = False
        self._interrupts = 0
        self._deadline = float("inf")

    @property
    def requested(self) -> bool:
        """True from the first signal on, and from the end of the time on."""
        return self._signalled or time.monotonic() >= self._deadline

    def request(self) -> None:
        """As a signal does."""
        self._signalled = True

    def stop_after(self, minutes: float | None) -> None:
        """Stop so many minutes from now; None: never."""
        self._deadline = float("inf") if minutes is None else time.monotonic() + 60.0 * minutes

    def install_handlers(self) -> "StopRequest":
        """Take ``STOP_SIGNALS`` from here on. In the main thread only.

        A thread hears them: the main one may be waiting in a collective, where Python's own handlers do not run.
        """
        read_fd, write_fd = os.pipe()
        os.set_blocking(write_fd, False)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            signal.signal(number, lambda *_: None)
        threading.Thread(target=self._read_signals, args=(read_fd,), name="signals", daemon=True).start()
        return self

    def _read_signals(self, read_fd: int) -> None:
        while True:
            for number in os.read(read_fd, 64):
                if number not in STOP_SIGNALS:
                    continue
                self._signalled = True
                self._interrupts += number == signal.SIGINT
                if self._interrupts > 1:
                    os._exit(_INTERRUPTED)
