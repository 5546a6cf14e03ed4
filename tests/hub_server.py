"""A server on loopback that speaks the protocol of the hub, as far as ``huggingface_hub`` needs it to push and to read.

Repositories, branches, commits of small files, large files by the LFS batch API. It fails as it is told.
"""

import base64
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote

from tests.web_server import LoopbackServer

TOKEN = "hf_secret0123456789"
LARGE = (".safetensors", ".hdf5")


class HubServer(LoopbackServer):
    """The user is ``ada``, of the organisation ``lab``."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], dict[str, Any]] = {}
        """By kind and OWNER/NAME: ``private``, and ``branches``: files by name, by branch."""
        self.large: dict[str, bytes] = {}
        """Large files by their SHA-256."""
        self.requests: list[str] = []
        """``METHOD path`` of all that had the token."""
        self.faults: dict[str, list[int]] = defaultdict(list)
        """By the beginning of ``METHOD path``: statuses of the next answers; 0 closes the connection."""
        self.role = "write"
        super().__init__(_Handler)

    def add(self, kind: str, repo: str, files: dict[str, bytes] | None = None, private: bool = False) -> None:
        """A repository with ``files``."""
        self.repos[kind, repo] = {"private": private, "branches": {"main": dict(files or {})}}

    def files(self, kind: str, repo: str, branch: str = "main") -> dict[str, bytes]:
        """What is in a branch."""
        branches: dict[str, dict[str, bytes]] = self.repos[kind, repo]["branches"]
        return branches[_branch(branches, branch)]


def _branch(branches: Iterable[str], revision: str) -> str:
    """The branch that ``revision``, a branch or its commit, names."""
    return next((name for name in branches if _commit(name) == revision), revision)


def _commit(branch: str) -> str:
    return hashlib.sha1(branch.encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    owner: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self._chunks()
        path = unquote(self.path.partition("?")[0])
        line = f"{self.command} {path}"
        for start, statuses in self.owner.faults.items():
            if line.startswith(start) and statuses:
                status = statuses.pop(0)
                if status == 0:
                    self.close_connection = True
                    return None
                return self._send(status, {"error": "told to fail"})
        if path.startswith("/large/"):  # as with a signed address: no token
            content = self.body
            assert hashlib.sha256(content).hexdigest() == path.removeprefix("/large/")
            self.owner.large[path.removeprefix("/large/")] = content
            self.owner.requests.append(line)
            return self._send(200, {})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, {"error": "Invalid username or password."})
        self.owner.requests.append(line)
        return self._route(path)

    def _chunks(self) -> bytes:
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _route(self, path: str) -> None:
        if path == "/api/whoami-v2":
            auth = {"accessToken": {"role": self.owner.role}}
            return self._send(200, {"name": "ada", "orgs": [{"name": "lab"}], "auth": auth})
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(self.body))
        if found := re.fullmatch(r"/(?:(dataset)s/)?([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", path):
            return self._batch(json.loads(self.body))
        if found := re.fullmatch(r"/(?:(dataset)s/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(found[1] or "model", *found.groups()[1:])
        if found := re.fullmatch(r"/api/(model|dataset)s/([\w.-]+/[\w.-]+)(?:/([\w-]+)(?:/([^/]+)(?:/(.+))?)?)?", path):
            repo = self.owner.repos.get((found[1], found[2]))
            if repo is None:
                return self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return self._api(repo, found[2], found[3], found[4] or "main", found[5] or "")
        return self._send(404, {"error": f"no {path}"})

    def _create(self, asked: dict[str, Any]) -> None:
        kind, repo = asked.get("type", "model"), f"{asked['organization'] or 'ada'}/{asked['name']}"
        if any(name == repo for _, name in self.owner.repos):
            return self._send(409, {"error": "You already created this repo"})
        self.owner.add(kind, repo, {".gitattributes": b""}, asked.get("visibility") == "private")
        return self._send(200, {"url": f"{self.owner.address}/{repo}"})

    def _api(self, repo: dict[str, Any], name: str, what: str | None, branch: str, rest: str) -> None:
        branches, branch = repo["branches"], _branch(repo["branches"], branch)
        if what == "branch":
            branches.setdefault(branch, dict(branches["main"]))
            return self._send(201, {})
        if branch not in branches:
            return self._send(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        files = branches[branch]
        if what in (None, "revision"):
            siblings = [{"rfilename": file} for file in sorted(files)]
            return self._send(
                200, {"id": name, "sha": _commit(branch), "private": repo["private"], "siblings": siblings}
            )
        if what == "tree":
            inside = f"{rest}/" if rest else ""
            listed = [self._entry(file, content) for file, content in files.items() if file.startswith(inside)]
            if "recursive=true" not in self.path.lower():
                listed = [entry for entry in listed if "/" not in entry["path"].removeprefix(inside)]
                folders = {file.removeprefix(inside).partition("/")[0] for file in files if file.startswith(inside)
                           and "/" in file.removeprefix(inside)}  # fmt: skip
                listed += [{"type": "directory", "oid": "0", "size": 0, "path": inside + folder} for folder in folders]
            status = 200 if listed else 404
            return self._send(status, listed or {"error": "no"}, {} if listed else {"X-Error-Code": "EntryNotFound"})
        if what == "paths-info":
            wanted = re.findall(r"paths=([^&]+)", unquote(self.body.decode())) if self.body[:1] != b"{" else None
            wanted = json.loads(self.body)["paths"] if wanted is None else wanted
            return self._send(200, [self._entry(file, files[file]) for file in wanted if file in files])
        if what == "preupload":
            rows = [{"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                     "shouldIgnore": False, "oid": self._oid(file["path"], files.get(file["path"]))}
                    for file in json.loads(self.body)["files"]]  # fmt: skip
            return self._send(200, {"files": rows})
        assert what == "commit", self.path
        for row in map(json.loads, self.body.splitlines()):
            value = row["value"]
            if row["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                files[value["path"]] = self.owner.large[value["oid"]]
            elif row["key"] == "deletedFile":
                del files[value["path"]]
        return self._send(200, {"commitUrl": f"{self.owner.address}/{name}/commit/{1:040x}", "commitOid": f"{1:040x}"})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for one in asked["objects"]:
            link = {"upload": {"href": f"{self.owner.address}/large/{one['oid']}"}}
            objects.append(one if one["oid"] in self.owner.large else {**one, "actions": link})
        self._send(200, {"objects": objects, "transfer": "basic"})

    def _resolve(self, kind: str, repo: str, branch: str, name: str) -> None:
        content = self.owner.files(kind, repo, branch).get(name)
        if content is None:
            return self._send(404, {"error": "no"}, {"X-Error-Code": "EntryNotFound"})
        headers = {
            "X-Repo-Commit": _commit(_branch(self.owner.repos[kind, repo]["branches"], branch)),
            "ETag": f'"{self._oid(name, content)}"',
            "Accept-Ranges": "bytes",
        }
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            return self._send(200, content, headers)
        start, stop = int(asked[1]), min(int(asked[2] or len(content)) + 1, len(content))
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return self._send(206, content[start:stop], headers)

    def _entry(self, name: str, content: bytes) -> dict[str, Any]:
        entry = {"type": "file", "path": name, "oid": self._oid(name, content), "size": len(content)}
        if name.endswith(LARGE):
            entry["lfs"] = {"oid": self._oid(name, content), "size": len(content), "pointerSize": 130}
        return entry

    def _oid(self, name: str, content: bytes | None) -> str | None:
        """As git has it: of a large file its SHA-256, else SHA-1 with git's header."""
        if content is None:
            return None
        if name.endswith(LARGE):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def _send(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
