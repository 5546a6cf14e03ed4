"""Standard output whose write errors do not end a command.

A log file on a full disk, a terminal that is gone: a command that works for hours must not fail because of a line that
it prints. Its results are in files.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast


class SteadyOutput:
    """``stream``, but write errors are counted instead of raised.

    A reader that has left (``| head``) still raises ``BrokenPipeError``, unless ``goes_on`` is set.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.goes_on = stream, False
        self.failed_lines, self.reason = 0, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write ``text``; complete lines at once, so that an error belongs to its line."""
        try:
            self.stream.write(text)
            if text.endswith("\n"):
                self.stream.flush()
                self._report()
        except OSError as error:
            self._note(error)
        return len(text)

    def flush(self) -> None:
        """Flush ``stream``, if it can be written."""
        try:
            self.stream.flush()
        except OSError as error:
            self._note(error)

    def _report(self) -> None:
        if self.failed_lines:
            number, self.failed_lines = self.failed_lines, 0
            self.stream.write(f"(up to {number} lines before this one were not printed: {self.reason})\n")
            self.stream.flush()

    def _note(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError) and not self.goes_on:
            raise error
        self.failed_lines += 1
        self.reason = error.strerror or str(error)

    def finish(self) -> None:
        """Before the interpreter exits: drop what cannot be written, which would change its exit status."""
        try:
            self.stream.flush()
        except OSError as error:
            if isinstance(error, BrokenPipeError) and not self.goes_on:
                raise
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.stream.fileno())
            os.close(null)


def _open_closed_streams() -> None:
    """Give a process whose parent closed descriptors 0 to 2 some: else the files that it opens get their numbers, and
    what libraries print goes into them."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


@contextmanager
def steady_output() -> Iterator[SteadyOutput]:
    """Standard output as a ``SteadyOutput`` inside the context. Closed standard streams become the null device."""
    _open_closed_streams()
    before = sys.stdout
    output = before if isinstance(before, SteadyOutput) else SteadyOutput(before)
    sys.stdout = cast(TextIO, output)
    try:
        yield output
    finally:
        sys.stdout = before


def go_on_without_reader() -> None:
    """From here on results are in files: errors of standard output neither end the command nor set its exit status."""
    if isinstance(sys.stdout, SteadyOutput):
        sys.stdout.goes_on = True
