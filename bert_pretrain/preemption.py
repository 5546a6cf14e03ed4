"""Asked to leave: after SIGTERM or SIGUSR1 every rank stops after the same step, saves, and ends with status 75.

A scheduler sends the signal to some ranks, or to each at another moment. The trainer adds ``StopRequest.asked`` to the
counts that the ranks reduce in every step anyway, and reads the sum with the numbers of that step: no further
collective, nothing waits for the device, and every rank learns of it at the same place.
"""

import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
STOPPED = 75
"""Exit status of a run that was asked to stop and can go on (EX_TEMPFAIL of sysexits.h): start it again."""


class StopRequest:
    """Whether this process was asked to stop. A signal sets a flag and does nothing else; twice is as once."""

    def __init__(self) -> None:
        self.asked = False

    def listen(self) -> "StopRequest":
        """Take ``STOP_SIGNALS`` from here on. In the main thread only."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._hear)
        return self

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
