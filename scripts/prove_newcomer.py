"""The path of a newcomer: from pip install of the wheel in a clean Debian to a report that can be mailed.

    sudo .venv/bin/python scripts/prove_newcomer.py

Makes a Debian root with debootstrap (Python and venv, nothing of this program), puts the wheel and a text into it, and
types the newcomer's commands there as an ordinary user. Counts commands and minutes, checks that the report is one file
without references to others, sends it with Python's mail library to a server in this process, and compares what
arrives. Takes some minutes and 3 GB under /var/tmp, which are freed at the end.
"""

import email
import email.policy
import os
import pydoc_data.topics
import re
import shlex
import shutil
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from datetime import date
from pathlib import Path

from repository_root import ROOT
from results_file import argument_parser, write_result

HOME = Path("home/newcomer")
USER = "1000:1000"
COMMANDS = (
    "python3 -m venv bert",
    ". bert/bin/activate",
    "pip install torch=={torch}",
    "pip install '{wheel}[data]'",
    "bert-pretrain prepare corpus=text corpus.path=texts/ corpus.documents=file out_dir=data/mine"
    " 'sequence_lengths=[64]' vocab_size=2000 heldout_fraction=0.1",
    "bert-pretrain pretrain recipe=demo run_dir=runs/mine data.dir=data/mine model.vocab_size=2000"
    " schedule.total_steps={steps} training.evaluate_every_steps=20 logging.every_steps=5",
    "python mail.py runs/mine/report.html {port}",
)
"""What the newcomer types; the last stands for attaching the report to a mail."""
MAIL = """
import smtplib, sys
from email.message import EmailMessage
from pathlib import Path

message = EmailMessage()
message["From"], message["To"], message["Subject"] = "newcomer@example.org", "colleague@example.org", "my BERT"
message.set_content("The report is attached.")
message.add_attachment(Path(sys.argv[1]).read_bytes(), maintype="text", subtype="html", filename="report.html")
with smtplib.SMTP("127.0.0.1", int(sys.argv[2])) as server:
    server.send_message(message)
"""


class Mailbox(socketserver.StreamRequestHandler):
    """One SMTP session (RFC 5321), enough for a client that sends one message."""

    received = b""

    def handle(self) -> None:
        """Answer each command; keep the message."""
        self.wfile.write(b"220 mailbox\r\n")
        for line in self.rfile:
            command = line.strip().upper()
            if command == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                lines = iter(self.rfile.readline, b".\r\n")
                Mailbox.received = b"".join(line.removeprefix(b".") for line in lines)
            self.wfile.write(b"221 bye\r\n" if command == b"QUIT" else b"250 ok\r\n")
            if command == b"QUIT":
                return


def received_report() -> bytes:
    """The attachment of the message in the mailbox."""
    message = email.message_from_bytes(Mailbox.received, policy=email.policy.default)
    (attachment,) = message.iter_attachments()
    content = attachment.get_content()
    return content.encode() if isinstance(content, str) else content


def outside_references(page: str) -> list[str]:
    """The files that ``page`` loads: none if it can be mailed."""
    loaded = re.findall(r"""<(?:img|script|link|iframe)\b[^>]*?(?:src|href)=["']?([^"'\s>]+)""", page)
    loaded += re.findall(r"url\(['\"]?([^)'\"]+)", page)
    return [target for target in loaded if not target.startswith(("data:", "#"))]  # "#": a part of the page itself


def write_texts(folder: Path) -> int:
    """The newcomer's own text: Python's manual, a file a topic. Returns its size in characters."""
    folder.mkdir()
    for name, text in pydoc_data.topics.topics.items():
        paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
        (folder / f"{name}.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    return sum(map(len, pydoc_data.topics.topics.values()))


def install_root(root: Path, stack: ExitStack, binds: list[str]) -> None:
    """Debian in ``root`` unless it is there, with this machine's name service and certificates."""
    if not (root / "usr/bin/python3").exists():
        packages = "--include=python3-venv,ca-certificates"
        made = ["debootstrap", "--variant=minbase", packages, "bookworm", str(root)]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
    for name in ("/proc", "/sys", "/dev", *binds):
        (root / name[1:]).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", name, root / name[1:]], check=True)
        stack.callback(subprocess.check_call, ["umount", str(root / name[1:])])
    for name in ("/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs/ca-certificates.crt"):
        shutil.copy(name, root / name[1:])


def type_commands(root: Path, commands: list[str], environment: list[str]) -> list[float]:
    """Run ``commands`` in one shell in ``root`` as the newcomer; the seconds of each."""
    seconds = []
    words = ["env", "-i", "PATH=/usr/bin:/bin", "LANG=C.UTF-8", f"HOME=/{HOME}", *environment]
    shell = ["chroot", f"--userspec={USER}", str(root), *words, "bash"]
    with subprocess.Popen(shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as newcomer:
        assert newcomer.stdin is not None
        assert newcomer.stdout is not None
        newcomer.stdin.write(f"exec 2>&1; cd /{HOME}\n")
        for command in commands:
            print(f"$ {command}", flush=True)
            started = time.monotonic()
            newcomer.stdin.write(f'{command}\necho "== status $?"\n')
            newcomer.stdin.flush()
            for line in newcomer.stdout:
                if line.startswith("== status"):
                    break
                print(line, end="", flush=True)
            if line != "== status 0\n":
                sys.exit(f"FAILED: {command}")
            seconds.append(time.monotonic() - started)
        newcomer.stdin.close()
    return seconds


def main() -> None:
    """Make the root, type the commands, look at the mail."""
    parser = argument_parser(__doc__)
    parser.add_argument("--wheel", type=Path, required=True, help="the wheel of this program")
    parser.add_argument("--root", type=Path, help="a Debian root that is there already, and stays")
    parser.add_argument("--bind", action="append", default=[], help="folder of this machine that pip needs")
    parser.add_argument("--environment", action="append", default=[], help="NAME=VALUE for pip, such as PIP_FIND_LINKS")
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("error: debootstrap and chroot need root")
    lock = (ROOT / "requirements.lock").read_text()
    (torch,) = re.findall(r"^torch==(\S+)", lock, re.MULTILINE)
    with ExitStack() as stack:
        root = given.root
        if root is None:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prove_newcomer.", dir="/var/tmp")))
        root.chmod(0o755)
        install_root(root, stack, given.bind)
        home = root / HOME
        home.mkdir(parents=True)
        characters = write_texts(home / "texts")
        shutil.copy(given.wheel, home)
        (home / "mail.py").write_text(MAIL)
        for path in (home, *home.rglob("*")):
            os.chown(path, *map(int, USER.split(":")))
        server = stack.enter_context(socketserver.TCPServer(("127.0.0.1", 0), Mailbox))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stack.callback(server.shutdown)
        values = {"torch": torch, "wheel": f"./{given.wheel.name}", "steps": given.steps}
        commands = [command.format(port=server.server_address[1], **values) for command in COMMANDS]
        seconds = type_commands(root, commands, given.environment)
        report = (home / "runs/mine/report.html").read_bytes()
    outside = outside_references(report.decode())
    if outside or received_report() != report or b"<dt>state</dt><dd>finished</dd>" not in report:
        sys.exit(f"FAILED: the report refers to {outside}, did not arrive as it was sent, or is of an unfinished run")
    rows = [
        {"command": shlex.join(shlex.split(command)[:3]), "minutes": round(taken / 60, 2)}
        for command, taken in zip(commands, seconds, strict=True)
    ]
    total = {"command": f"all {len(commands)} commands", "minutes": round(sum(seconds) / 60, 1)}
    note = f"Text of {characters:,} characters, {given.steps} steps. The mailed report has {len(report) / 1000:.0f} kB,"
    note += " refers to no other file, and arrived byte for byte."
    what = "A newcomer's path: pip install in a clean Debian, own text, pretraining, report by mail"
    write_result(ROOT / f"scripts/results/cpu_{date.today()}_newcomer.json", what, [*rows, total], note)


if __name__ == "__main__":
    main()
