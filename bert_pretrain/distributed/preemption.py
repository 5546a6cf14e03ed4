"""Asked to leave: after SIGTERM, SIGUSR1, SIGINT or a time limit every rank stops after the same step, saves, and ends
with status 75.

A scheduler sends the signal to some ranks, or to each at another moment. The trainer adds ``StopRequest.asked`` to the
counts that the ranks reduce in every step anyway, and reads the sum with the numbers of that step: no further
collective, nothing waits for the device, and every rank learns of it at the same place. An evaluation does likewise
with each of its batches; one that was left is done when the run goes on. A second SIGINT ends the process at once;
nothing is harmed, since files get their names only when they are whole.
"""

import os
import signal
import threading
import time

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
STOPPED = 75
"""Exit status of a run that was asked to stop and can go on (EX_TEMPFAIL of sysexits.h): start it again."""
_INTERRUPTED = 128 + signal.SIGINT


class StopRequest:
    """Whether this process was asked to stop, by a signal or because its ``minutes`` are over."""

    def __init__(self) -> None:
        self._heard = False
        self._interrupts = 0
        self._deadline = float("inf")

    @property
    def asked(self) -> bool:
        """True from the first signal on, and from the end of the time on."""
        return self._heard or time.monotonic() >= self._deadline

    def ask(self) -> None:
        """As a signal does."""
        self._heard = True

    def stop_after(self, minutes: float | None) -> None:
        """Stop so many minutes from now; None: never."""
        self._deadline = float("inf") if minutes is None else time.monotonic() + 60.0 * minutes

    def listen(self) -> "StopRequest":
        """Take ``STOP_SIGNALS`` from here on. In the main thread only.

        A thread hears them: the main one may be waiting in a collective, where Python's own handlers do not run.
        """
        ear, mouth = os.pipe()
        os.set_blocking(mouth, False)
        signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            signal.signal(number, lambda *_: None)
        threading.Thread(target=self._hear, args=(ear,), name="signals", daemon=True).start()
        return self

    def _hear(self, ear: int) -> None:
        while True:
            for number in os.read(ear, 64):
                if number not in STOP_SIGNALS:
                    continue
                self._heard = True
                self._interrupts += number == signal.SIGINT
                if self._interrupts > 1:
                    os._exit(_INTERRUPTED)
