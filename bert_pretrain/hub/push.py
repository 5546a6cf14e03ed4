"""Uploads files to a repository of the hub, or of the server that ``HF_ENDPOINT`` names, with ``huggingface_hub``.

The token is the one that ``huggingface_hub`` finds; no message shows it. What the server has already is not sent again,
so that the same command goes on after a failure.
"""

import errno
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bert_pretrain.errors import ConfigError
from bert_pretrain.files.addresses import http_status, is_outage
from bert_pretrain.files.hub_download import be_quiet, hub_reason
from bert_pretrain.files.retry import retried, say
from bert_pretrain.program import release

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Result = TypeVar("Result")
_NEUTRAL = (".gitattributes", "README.md", "LICENSE")  # what a repository may hold before the first push


@dataclass(frozen=True)
class Target:
    """A repository that this user may write to."""

    api: "HfApi"
    repo: str
    """OWNER/NAME."""
    kind: str
    """``model`` or ``dataset``."""
    private: bool
    """Of a new repository; one that is there stays as it is."""


def open_target(push_to: str, kind: str, private: bool) -> Target:
    """The repository ``push_to``, NAME or OWNER/NAME; nothing is made yet.

    Raises ``ConfigError``: not a name, no token, a token that may not write there.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    be_quiet()
    try:
        validate_repo_id(push_to)
    except HFValidationError as error:
        raise ConfigError(f"push_to is {push_to!r}, which is no OWNER/NAME of the hub ({hub_reason(error)})") from None
    api = HfApi(library_name="bert-pretrain", library_version=release())
    if get_token() is None:
        raise ConfigError(
            f"push_to={push_to} needs a token of {api.endpoint}, and there is none; set HF_TOKEN, or run hf auth "
            "login, with one that may write"
        )
    user = _answered(api, push_to, api.whoami)
    owner, _, name = push_to.rpartition("/")
    target = Target(api, f"{owner or user['name']}/{name}", kind, private)
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ConfigError(f"push_to={push_to}: the token of {user['name']} may only read; give one that may write")
    owners = [user["name"], *(organisation["name"] for organisation in user.get("orgs", []))]
    if owner and owner not in owners:
        raise ConfigError(f"push_to is {push_to!r}; the token of {user['name']} may write to: {', '.join(owners)}")
    return target


def push(target: Target, files: dict[str, Path | bytes], mark: str, message: str, branch: str | None = None) -> None:
    """Commit ``files``, by their names there, to ``branch`` of the repository, which is made if it is not there.

    Shards (``*.hdf5``) that are there and not in ``files`` are removed. Raises ``ConfigError`` if the repository holds
    something else, which lacks the file ``mark``; ``OutageError`` if there is no answer for minutes.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.errors import RevisionNotFoundError

    api = target.api
    repo: dict[str, Any] = {"repo_id": target.repo, "repo_type": target.kind}

    def ask(work: Callable[[], Result]) -> Result:
        return _answered(api, target.repo, work)

    there = ask(lambda: _make_or_find(target))
    if there - {*_NEUTRAL} and mark not in there:
        raise ConfigError(
            f"push_to={target.repo} holds other files ({', '.join(sorted(there)[:3])}) and no {mark}: it is no earlier "
            "push of this kind; give another name"
        )
    if branch is not None:
        try:
            there = ask(lambda: set(api.list_repo_files(**repo, revision=branch)))
        except RevisionNotFoundError:
            ask(lambda: api.create_branch(**repo, branch=branch, exist_ok=True))
    adds: list[Any] = [CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in files.items()]  # fmt: skip
    removes = [CommitOperationDelete(name) for name in sorted(there - files.keys()) if name.endswith(".hdf5")]
    ask(lambda: api.create_commit(**repo, operations=[*adds, *removes], commit_message=message, revision=branch))
    kinds = "" if target.kind == "model" else f"{target.kind}s/"
    visible = "private" if ask(lambda: api.repo_info(**repo)).private else "public"
    at = f"/tree/{branch}" if branch else ""
    print(f"pushed {len(files)} files to {api.endpoint}/{kinds}{target.repo}{at} ({visible})", flush=True)


def _make_or_find(target: Target) -> set[str]:
    """The names of the files in the repository. Raises ``ConfigError`` if one of another kind has its name."""
    from huggingface_hub.errors import RepositoryNotFoundError

    api = target.api
    repo: dict[str, Any] = {"repo_id": target.repo, "repo_type": target.kind}
    try:
        found = api.repo_info(**repo)
    except RepositoryNotFoundError:
        try:
            api.create_repo(**repo, private=target.private)
        except Exception as error:
            if http_status(error) != 409:
                raise
            raise ConfigError(
                f"push_to={target.repo} is taken by a repository of another kind than {target.kind}; give another name"
            ) from None
        return set()
    return {file.rfilename for file in getattr(found, "siblings", None) or ()}


def _answered(api: "HfApi", push_to: str, work: Callable[[], Result]) -> Result:
    """``work()``, again for minutes while the server gives no answer. Errors are explained in one line."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    def attempt() -> Result:
        try:
            return work()
        except (ConfigError, RevisionNotFoundError):
            raise
        except RepositoryNotFoundError as error:
            reason = hub_reason(error)
            raise ConfigError(f"push_to={push_to}: {api.endpoint} has no such repository ({reason})") from None
        except Exception as error:  # its libraries raise many types
            raise _explained(error, api.endpoint, push_to) from None

    return retried(attempt, api.endpoint, say, action="reached")


def _explained(error: Exception, endpoint: str, push_to: str) -> OSError | ConfigError:
    """``error`` as an outage (an ``OSError``), or the user's mistake."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # what kept one of the files from being sent
    status = http_status(error)
    if isinstance(error, OfflineModeIsEnabled):
        return ConfigError(f"push_to={push_to}: HF_HUB_OFFLINE is set; unset it to push")
    if status == 401:
        return ConfigError(f"push_to={push_to}: {endpoint} does not accept the token; set HF_TOKEN to a valid one")
    if status == 403:
        return ConfigError(f"push_to={push_to}: the token may not write there ({hub_reason(error)}); give one that may")
    if is_outage(error):
        return OSError(errno.EIO, f"HTTP {status}" if status else hub_reason(error))
    return ConfigError(
        f"push_to={push_to}: {endpoint} refuses it ({hub_reason(error)}); see that HF_ENDPOINT is a hub and "
        "the name right"
    )
