"""Two network namespaces as two nodes, connected by a veth pair. Needs root and iproute2.

Creates only the namespaces named here; ``remove_network`` deletes them.
"""

import json
import subprocess

NAMESPACES, ADDRESSES, INTERFACE = ("bert-node-0", "bert-node-1"), ("10.97.0.1", "10.97.0.2"), "veth-bert"


def shell(*command: str) -> None:
    """Run a command, which must succeed."""
    subprocess.run(command, check=True)


def create_network() -> None:
    """Create two namespaces and the veth pair between them."""
    remove_network()
    for namespace in NAMESPACES:
        shell("ip", "netns", "add", namespace)
    ends = [INTERFACE + str(number) for number in (0, 1)]
    first, second = NAMESPACES
    shell("ip", "link", "add", ends[0], "netns", first, "type", "veth", "peer", ends[1], "netns", second)
    for namespace, end, address in zip(NAMESPACES, ends, ADDRESSES, strict=True):
        shell("ip", "-n", namespace, "link", "set", "lo", "up")
        shell("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", end)
        shell("ip", "-n", namespace, "link", "set", end, "up")


def remove_network() -> None:
    """Delete the namespaces, and with them the veth pair."""
    for namespace in NAMESPACES:
        subprocess.run(["ip", "netns", "delete", namespace], check=False, stderr=subprocess.DEVNULL)


def limit_bandwidth(megabits: float) -> None:
    """Limit the link to ``megabits`` Mbit/s each way."""
    _shape("rate", f"{megabits}mbit", "burst", "16kb", "limit", "32mb")


def drop_packets() -> None:
    """Drop every packet silently: no frame fits into a burst of 10 bytes."""
    _shape("rate", "1kbit", "burst", "10", "limit", "10")


def _shape(*options: str) -> None:
    for number, namespace in enumerate(NAMESPACES):
        device = INTERFACE + str(number)
        shell("tc", "-n", namespace, "qdisc", "replace", "dev", device, "root", "tbf", *options)


def bytes_sent(number: int) -> int:
    """Bytes that node ``number`` has sent."""
    command = ["ip", "-n", NAMESPACES[number], "-j", "-s", "link", "show", INTERFACE + str(number)]
    return int(json.loads(subprocess.check_output(command))[0]["stats64"]["tx"]["bytes"])


def on_node(number: int) -> list[str]:
    """The prefix of a command that runs on node ``number``."""
    return ["ip", "netns", "exec", NAMESPACES[number]]
