"""A model's files on the Hugging Face hub: those in its cache on this machine, else downloaded to it.

A local folder goes before what the hub has under the same name.
"""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bert_pretrain.errors import ConfigError
from bert_pretrain.files.addresses import http_status, is_outage, without_secrets

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
"""NAME or OWNER/NAME."""
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
INDEXES = tuple(f"{name}.index.json" for name in SINGLE_FILES)
"""Of weights in several files."""
_TEXT = ("*.json", "vocab.txt", "*/vocab.txt", "merges.txt", "*.model")
_MODEL = [(*_TEXT, kind, f"*/{kind}") for kind in ("model*.safetensors", "pytorch_model*.bin")]


def local_model(name: str, option: str) -> Path:
    """The folder ``name``, or, if there is none and ``name`` may be of the hub, that of its model of this name.

    It has configuration, tokenizer and weights of the hub's model, or what it has of them. Raises as ``hub_folder``.
    """
    folder = Path(name).expanduser()
    if folder.exists() or not HUB_NAME.fullmatch(name):
        return folder
    return hub_folder(name, option, _MODEL, _has_weights)


def hub_folder(name: str, option: str, choices: Sequence[Sequence[str]], is_whole: Callable[[Path], bool]) -> Path:
    """The folder in the hub's cache with files of the model ``name``, downloaded if they are not there.

    ``choices``: glob patterns of the wanted files, tried in this order until ``is_whole(folder)``. If it never is, the
    folder is what the hub has. Raises ``ConfigError`` about ``option`` if the hub has no such model or is not reached.
    """
    from huggingface_hub import snapshot_download

    be_quiet()
    folder = None
    for is_cached in (True, False):
        for patterns in choices:
            try:
                folder = Path(snapshot_download(name, allow_patterns=list(patterns), local_files_only=is_cached))
            except Exception as error:  # the hub's library and the network raise many types
                if is_cached:
                    continue
                found = f"{option} is {name!r}, which is no file or folder here"
                raise ConfigError(f"{found}, and {_explained(error, name)}") from None
            if is_whole(folder):
                return folder
    assert folder is not None
    return folder


def _has_weights(folder: Path) -> bool:
    """Whether a folder of the hub's cache has a model, in itself or in the part of sentence-transformers."""
    return any(any(folder.glob(f"**/{file}")) for file in (*SINGLE_FILES, *INDEXES))


def be_quiet() -> None:
    """No progress bars of the hub's library in a log file, and none of its warnings."""
    from huggingface_hub.utils import disable_progress_bars, logging

    if not sys.stderr.isatty():
        disable_progress_bars()
    logging.set_verbosity_error()


def hub_reason(error: BaseException) -> str:
    """The message of ``error`` of the hub's library on one line, without the user's token."""
    from huggingface_hub import get_token

    text = without_secrets(" ".join(str(error).split())).partition(" For more information check: ")[0]
    return text.replace(get_token() or "\n", "***")[:200] or type(error).__name__


def _explained(error: BaseException, name: str) -> str:
    """Why the hub gave nothing, and what to do."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import GatedRepoError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    hub = constants.ENDPOINT
    while isinstance(error.__cause__, Exception) and http_status(error) is None:  # type: ignore[arg-type]
        error = error.__cause__
    status = http_status(error)  # type: ignore[arg-type]
    if isinstance(error, HFValidationError):
        return f"no name on the hub either ({hub_reason(error)}); correct it"
    if isinstance(error, OfflineModeIsEnabled):
        return "not in the hub's cache, and HF_HUB_OFFLINE is set; unset it, or give a folder"
    if isinstance(error, GatedRepoError):
        return f"on the hub only for those who accept its terms; accept them at {hub}/{name}, and set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        hidden = "is hidden from this token" if get_token() else "is private and needs HF_TOKEN"
        return f"{hub} has no such model, or it {hidden}; correct the name, or give a folder"
    if status in (401, 403):
        return f"{hub} refuses this user (HTTP {status}); set HF_TOKEN to a token that may read it, or give a folder"
    if status is not None and not is_outage(error):  # type: ignore[arg-type]
        return f"{hub} refuses it (HTTP {status}); see that HF_ENDPOINT is a hub, or give a folder"
    if isinstance(error, OSError) and error.filename and status is None:
        return f"the hub's cache cannot be written ({hub_reason(error)}); set HF_HOME to a folder that can"
    reason = f"HTTP {status}" if status else hub_reason(error)
    return (
        f"{hub} cannot be reached now ({reason}); try again, or run hf download {name} where there is a network, and "
        "give that folder"
    )
