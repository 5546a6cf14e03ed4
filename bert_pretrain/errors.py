"""Errors that are printed as one message, exit statuses, and which ``OSError`` is the user's, which the machine's."""

import difflib
import errno
import re
from collections.abc import Iterable

EXIT_MISTAKE = 2
"""The user's: a wrong option, file, permission, a full disk. The same command fails again: no launcher restarts it."""
EXIT_OUTAGE = 74
"""The machine's: a disk or a file server did not answer for minutes (EX_IOERR of sysexits.h). A restart may help."""
EXIT_STOPPED = 75
"""A run that stopped on request and can be resumed (EX_TEMPFAIL): not restarted."""
EXIT_LOST_RANK = 76
"""A run that lost a rank and can be resumed (EX_PROTOCOL): restarted."""

OUTAGES = {
    getattr(errno, name)
    for name in (
        "EIO", "ESTALE", "EREMOTEIO", "ETIMEDOUT", "ENOTCONN", "ECONNRESET", "ECONNREFUSED", "ECONNABORTED", "ENOLINK",
        "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ESHUTDOWN", "ENODEV", "ENXIO", "EBUSY", "ENOMEM",
    )
}  # fmt: skip
"""Numbers of an ``OSError`` that are the machine's: worth another attempt. All others are the user's."""


_OF_DISKS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE,
}  # fmt: skip
"""Numbers of errors of disks, permissions and open files that no check can rule out: a disk fills up meanwhile."""


class ConfigError(ValueError):
    """A wrong option, file or directory.

    The message names the option or file, what was found, what is allowed and what to do. Commands print it on one line,
    without a traceback, and exit with ``exit_status``.
    """

    exit_status = EXIT_MISTAKE


class OutageError(ConfigError):
    """A disk or a file server that does not answer; what was done is kept."""

    exit_status = EXIT_OUTAGE


class SharedError(ConfigError):
    """An error that all ranks raise at the same point, and that only rank 0 prints."""

    def __init__(self, message: str, exit_status: int = EXIT_MISTAKE) -> None:
        super().__init__(message)
        self.exit_status = exit_status


def number_of(error: BaseException) -> int | None:
    """The number of the system's error: of an ``OSError``, or in the text of one from safetensors or HDF5."""
    stated = re.findall(r"(?:os error|errno =) (\d+)", str(error))
    return getattr(error, "errno", None) or (int(stated[-1]) if stated else None)


def system_fault(error: Exception) -> ConfigError | None:
    """``error`` as a message if it is that of a disk, a permission or an outage, not of this program."""
    number = number_of(error)
    kind = OutageError if number in OUTAGES else ConfigError if number in _OF_DISKS else None
    return None if kind is None else kind(on_one_line(error))


def as_config_error(error: OSError) -> ConfigError:
    """``error`` as a message, of the kind that ``OUTAGES`` makes it."""
    return (OutageError if error.errno in OUTAGES else ConfigError)(str(error) or type(error).__name__)


class DivergedError(SharedError):
    """Training cannot continue: gradients, weights or moments are not finite."""


def on_one_line(error: BaseException) -> str:
    """The message of ``error`` on one line: its first, and as many more as fit into 200 characters; or its type."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    while len(lines) > 1 and len(" ".join(lines)) > 200:
        lines.pop()
    return " ".join(lines) or type(error).__name__


def with_type(error: BaseException) -> str:
    """``on_one_line`` behind the type, for errors of libraries whose message alone may say little."""
    return f"{type(error).__name__}: {on_one_line(error)}"


def require(condition: bool, option: str, found: object, allowed: str) -> None:
    """Raise ``ConfigError`` unless ``condition`` holds: what ``option`` is, what is allowed."""
    if not condition:
        raise ConfigError(f"{option} is {found!r}; allowed: {allowed}")


def require_choice(option: str, found: object, allowed: Iterable[str | None]) -> None:
    """``require`` that ``found`` is one of ``allowed``; the message names the nearest."""
    known = tuple(allowed)
    if found not in known:
        names = ["null" if choice is None else choice for choice in known]
        near = difflib.get_close_matches(str(found), names, 1)
        require(False, option, found, ", ".join(names) + (f" (did you mean {near[0]}?)" if near else ""))


def require_least(least: float, options: object, *names: str, prefix: str = "") -> None:
    """``require`` that those of the attributes ``names`` of ``options`` that are set are ``least`` or more."""
    for name in names:
        value = getattr(options, name)
        require(value is None or value >= least, f"{prefix}{name}", value, f"{least:g} or more")


def require_positive(options: object, *names: str, prefix: str = "") -> None:
    """``require`` that those of the attributes ``names`` of ``options`` that are set are above 0."""
    for name in names:
        value = getattr(options, name)
        require(value is None or value > 0, f"{prefix}{name}", value, "a number above 0")


def require_seed(option: str, seed: int, bits: int = 62) -> None:
    """Raise ``ConfigError`` unless ``seed`` is one that all random generators take."""
    require(0 <= seed < 1 << bits, option, seed, f"0 or more and below 2^{bits}")


def did_you_mean(found: str, allowed: Iterable[str]) -> str:
    """For messages: the entries of ``allowed`` nearest to ``found``, and all of them."""
    known = list(allowed)
    near = difflib.get_close_matches(found, known, 3, 0.5)
    return (f"did you mean {' or '.join(near)}? " if near else "") + f"allowed: {', '.join(known)}"
