"""Two network namespaces as two nodes, joined by one virtual cable, for the proofs: needs root and iproute2.

Only the namespaces named here are made, and ``remove_cable`` removes them.
"""

import json
import subprocess

SPACES, ADDRESSES, CABLE = ("bert-node-0", "bert-node-1"), ("10.97.0.1", "10.97.0.2"), "veth-bert"


def shell(*command: str) -> None:
    """Run a command that has to succeed."""
    subprocess.run(command, check=True)


def build_cable() -> None:
    """Two namespaces, a cable between them."""
    remove_cable()
    for space in SPACES:
        shell("ip", "netns", "add", space)
    ends = [CABLE + str(number) for number in (0, 1)]
    shell("ip", "link", "add", ends[0], "netns", SPACES[0], "type", "veth", "peer", ends[1], "netns", SPACES[1])
    for space, end, address in zip(SPACES, ends, ADDRESSES, strict=True):
        shell("ip", "-n", space, "link", "set", "lo", "up")
        shell("ip", "-n", space, "address", "add", f"{address}/24", "dev", end)
        shell("ip", "-n", space, "link", "set", end, "up")


def remove_cable() -> None:
    """Remove the namespaces, and the cable with them."""
    for space in SPACES:
        subprocess.run(["ip", "netns", "delete", space], check=False, stderr=subprocess.DEVNULL)


def slow_down(megabits: float) -> None:
    """Let through so many Mbit/s each way."""
    for number, space in enumerate(SPACES):
        shaping = ["tbf", "rate", f"{megabits}mbit", "burst", "16kb", "limit", "32mb"]
        shell("tc", "-n", space, "qdisc", "replace", "dev", CABLE + str(number), "root", *shaping)


def sent(number: int) -> int:
    """Bytes that node ``number`` has put on the cable."""
    shown = subprocess.check_output(["ip", "-n", SPACES[number], "-j", "-s", "link", "show", CABLE + str(number)])
    return int(json.loads(shown)[0]["stats64"]["tx"]["bytes"])


def cut_cable() -> None:
    """Lose every packet, and tell nobody: no frame is as small as this burst."""
    for number, space in enumerate(SPACES):
        shaping = ["tbf", "rate", "1kbit", "burst", "10", "limit", "10"]
        shell("tc", "-n", space, "qdisc", "replace", "dev", CABLE + str(number), "root", *shaping)


def on_node(number: int) -> list[str]:
    """The beginning of a command that runs on node ``number``."""
    return ["ip", "netns", "exec", SPACES[number]]
