"""The environment variables of torchrun, read and checked: which rank this process is, of how many.

Without any of them the world is this one process. A part of them, left over from another job, is refused: a process
that took itself for rank 3 would train and save nothing.
"""

import os
import socket
from dataclasses import dataclass

from bert_pretrain.errors import ConfigError, require

_REQUIRED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SIGNS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # in the order of Launch
"""Any of these says that a launcher was meant. ``MASTER_ADDR`` alone does not: clusters set it for all jobs."""


@dataclass(frozen=True)
class Launch:
    """This process among all processes, and among those of its node."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def read_launch() -> Launch:
    """What the launcher set. Raises ``ConfigError`` if it is incomplete or contradicts itself."""
    given = [name for name in _SIGNS if name in os.environ]
    if not given:
        return Launch()
    missing = [name for name in _REQUIRED if not os.environ.get(name)]
    if missing:
        found = ", ".join(f"{name}={os.environ[name]!r}" for name in given)
        raise ConfigError(
            f"the environment has {found}, but not {', '.join(missing)}; start all processes with torchrun, or one "
            f"alone after: unset {' '.join(given)}"
        )
    numbers = {name: _number(name) for name in (*_SIGNS, "MASTER_PORT")}
    launch = Launch(*(numbers[name] for name in _SIGNS))
    require(launch.size >= 1, "the environment's WORLD_SIZE", launch.size, "1 or more")
    require(launch.rank < launch.size, "the environment's RANK", launch.rank, f"below WORLD_SIZE ({launch.size})")
    allowed = f"below LOCAL_WORLD_SIZE ({launch.local_size})"
    require(launch.local_rank < launch.local_size, "the environment's LOCAL_RANK", launch.local_rank, allowed)
    require(0 < numbers["MASTER_PORT"] < 1 << 16, "the environment's MASTER_PORT", numbers["MASTER_PORT"], "1 to 65535")
    return launch


def _number(name: str) -> int:
    text = os.environ[name]
    require(text.isascii() and text.isdigit(), f"the environment's {name}", text, "a number, 0 or more")
    return int(text)


def local_rank() -> int:
    """``LOCAL_RANK``, or 0 if the environment is not a launcher's."""
    try:
        return read_launch().local_rank
    except ConfigError:
        return 0


def check_interface() -> None:
    """Raise ``ConfigError`` if ``GLOO_SOCKET_IFNAME`` names no network interface of this machine."""
    names = os.environ.get("GLOO_SOCKET_IFNAME", "")
    known = [name for _, name in socket.if_nameindex()]
    unknown = [name for name in filter(None, names.split(",")) if name not in known]
    if unknown:
        raise ConfigError(
            f"GLOO_SOCKET_IFNAME is {names!r}; allowed: the network interfaces of {socket.gethostname()}, "
            f"{', '.join(known)}"
        )
