"""Files at an fsspec address (``s3://``, ``gs://``, ``hf://``, ``https://``): found, and read by ranges of bytes.

Reads are tried again while a server does not answer (:mod:`bert_pretrain.files.retry`). Messages leave out
credentials: user and password before the host, and everything after a question mark.
"""

import errno
import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

from bert_pretrain.errors import OUTAGES, ConfigError, on_one_line
from bert_pretrain.files.retry import retried, say

BLOCK = 8 << 20
"""Bytes of one request, of a file that is read from its start."""
_SILENT_SECONDS = 60  # without a byte from a web server
_VERSIONS = ("ETag", "etag", "md5Hash", "blob_id", "Content-MD5", "Last-Modified", "LastModified", "mtime", "created")
_OUTAGE_STATUS = (408, 425, 429)  # of HTTP, besides 500 and more
_OUTAGE_TYPES = {
    "aiohttp.ClientConnectionError", "aiohttp.ClientPayloadError", "botocore.HTTPClientError",
    "botocore.ConnectionError", "builtins.ConnectionError", "builtins.TimeoutError", "google.TransportError",
    "httpx.TransportError", "httpx2.TransportError", "requests.ConnectionError", "requests.Timeout",
}  # fmt: skip
"""Errors of the libraries behind fsspec that mean: no answer, or half of one."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Address:
    """A file or folder at an fsspec address. Has those parts of ``Path`` that the readers of a corpus need."""

    url: str = field(repr=False)
    size: int | None = None
    """Bytes; None of a file that was not looked up."""
    version: str = ""
    """What the server says that changes with the content: its ETag or hash, else the time; empty if nothing."""

    def __str__(self) -> str:
        return without_secrets(self.url)

    def __truediv__(self, name: str) -> "Address":
        folder, mark, query = self.url.partition("?")
        return Address(f"{folder.rstrip('/')}/{name}{mark}{query}")

    @property
    def _path(self) -> PurePosixPath:
        return PurePosixPath(self.url.partition("?")[0])

    @property
    def name(self) -> str:
        """Without the folders."""
        return self._path.name

    @property
    def suffix(self) -> str:
        """Of the name, with its dot."""
        return self._path.suffix

    @property
    def suffixes(self) -> list[str]:
        """All of the name."""
        return self._path.suffixes


class MissingError(ConfigError):
    """There is no file at an address."""


def is_address(text: str) -> bool:
    """Whether ``text`` is an fsspec address and no path."""
    return re.match(r"[a-z][a-z0-9+.-]*(://|::)", text) is not None


def without_secrets(text: str) -> str:
    """``text`` with its addresses as messages show them."""
    text = re.sub(r"://[^/@\s'\"]*@", "://", text)
    return re.sub(r"(://[^\s'\"?]*)\?[^\s'\")]*=[^\s'\")]*", r"\1", text)


def look_up(address: Address) -> Address:
    """The file at ``address`` with its size and version.

    Raises ``ConfigError`` if it cannot be read (``MissingError``: there is none), ``OutageError`` if there is no answer
    for minutes.
    """
    info = _answered(address, lambda system, path: system.info(path))
    if info.get("size") is None:
        raise ConfigError(f"{address}: the server does not say the size of the file; download it, and give its path")
    return replace(address, size=int(info["size"]), version=_version(info))


def find(address: Address, wanted: Callable[[str], bool]) -> list[Address]:
    """The file at ``address``, the files that match it as a glob, or those in the folder whose name is ``wanted``.

    A folder of a web server ends with a slash. Names that begin with a dot are left out of a folder. Sorted as the
    same paths on a disk are. Raises as ``look_up``.
    """
    is_web = address.url.startswith("http")
    if any(mark in address.url for mark in ("*[" if is_web else "*[?")):
        more = {"on_error": "raise"} if is_web else {}  # else a folder that gives no answer would be left out
        found = _answered(address, lambda system, path: system.glob(path, detail=True, **more))
    elif address.url.endswith("/") or (not is_web and _is_folder(address)):
        found = _answered(address, lambda system, path: _files_under(system, path, wanted))
    else:
        return [look_up(address)]
    system = _system(address)[0]
    files = [
        Address(system.unstrip_protocol(name), info.get("size"), _version(info))
        for name, info in found.items()
        if info["type"] == "file"
    ]
    files = [file if file.size is not None and file.version else look_up(file) for file in files]
    return sorted(files, key=lambda file: file.url.split("/"))


def read_all(address: Address) -> bytes:
    """The content of a small file. Raises as ``look_up``."""
    with RangeFile(address) as file:
        return file.read(file.address.size or 0) or b""


def open_binary(path: Path | Address) -> IO[bytes]:
    """The file at ``path``, to be read. Of an address: a :class:`RangeFile`."""
    return RangeFile(path) if isinstance(path, Address) else open(path, "rb")  # type: ignore[return-value]


class RangeFile(io.RawIOBase):
    """A file at an address, read by ranges of bytes.

    Raises ``ConfigError`` if its size or version is not that of ``address``, or as ``look_up``.
    """

    def __init__(self, address: Address) -> None:
        self.address = look_up(address)
        self._position = 0
        if address.size is not None and address != self.address:
            raise ConfigError(
                f"{address} has changed since it was looked up: {address.size} bytes {address.version}, now "
                f"{self.address.size} {self.address.version}; run the same command again when it changes no more"
            )

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The position."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position and return it."""
        size = self.address.size or 0
        self._position = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: size}[whence])
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` as far as the file goes; the number of bytes."""
        start = self._position
        stop = min(start + len(buffer), self.address.size or 0)
        if start < stop:
            content = _answered(self.address, lambda system, path: _range(system, path, start, stop))
            buffer[: len(content)] = content
            self._position = stop
        return max(0, stop - start)


def _range(system: Any, path: str, start: int, stop: int) -> bytes:
    content: bytes = system.cat_file(path, start=start, end=stop)
    if len(content) > stop - start:
        raise ConfigError(
            f"{without_secrets(path)}: the server sends the whole file instead of bytes {start} to {stop}; download "
            "it, and give its path"
        )
    if len(content) < stop - start:
        raise OSError(errno.EIO, f"{len(content)} bytes of {stop - start} came")
    return content


def _files_under(system: Any, path: str, wanted: Callable[[str], bool]) -> dict[str, dict[str, Any]]:
    """What the system says of the files in a folder and its folders, by their paths."""
    found: dict[str, dict[str, Any]] = {}
    for _, folders, files in system.walk(path, detail=True, on_error="raise"):
        for name in [name for name in folders if name.startswith(".")]:
            del folders[name]
        found |= {info["name"]: info for name, info in files.items() if name[:1] not in ("", ".") and wanted(name)}
    return found


def _is_folder(address: Address) -> bool:
    return bool(_answered(address, lambda system, path: system.info(path))["type"] == "directory")


def _version(info: dict[str, Any]) -> str:
    return next((str(info[name]).strip('"') for name in _VERSIONS if info.get(name)), "")


def _answered(address: Address, ask: Callable[[Any, str], Result]) -> Result:
    """``ask(file system, path)``, asked again for minutes if there is no answer."""

    def attempt() -> Result:
        try:
            return ask(*_system(address))
        except ConfigError:
            raise
        except Exception as error:  # each protocol raises the errors of its own library
            raise _explained(error, address) from None

    return retried(attempt, str(address), say)


def _system(address: Address) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it."""
    try:
        from fsspec.core import url_to_fs  # slow to load

        options: dict[str, Any] = {"use_listings_cache": False}
        if address.url.startswith("http"):
            import aiohttp

            limits = aiohttp.ClientTimeout(total=None, sock_connect=_SILENT_SECONDS, sock_read=_SILENT_SECONDS)
            options["client_kwargs"] = {"timeout": limits}
        found: tuple[Any, str] = url_to_fs(address.url, **options)
    except ImportError as error:
        raise _missing_library(address, error) from None
    except ValueError as error:
        raise ConfigError(f"{address} is no address that fsspec knows ({without_secrets(str(error))})") from None
    return found


def _missing_library(address: Address, error: ImportError) -> ConfigError:
    from fsspec.registry import known_implementations

    protocol = re.split("://|::", address.url)[0]
    module = known_implementations.get(protocol, {}).get("class", "").partition(".")[0]
    package = error.name or module if module in ("fsspec", "") else module
    command = "'bert-pretrain[remote]'" if package in ("s3fs", "aiohttp") else package
    return ConfigError(f"{address}: this needs the package {package}, which is not installed: pip install {command}")


def _explained(error: Exception, address: Address) -> OSError | ConfigError:
    """``error`` as an outage (an ``OSError``), or the user's mistake."""
    while isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # fsspec also says so if a web server answers with an error
    status = http_status(error)
    number = error.errno if isinstance(error, OSError) else None
    reason = without_secrets(on_one_line(error))
    if status is not None:
        reason = f"HTTP {status}"
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return MissingError(f"{address} cannot be read: it is missing; correct the address, or restore the file")
    if isinstance(error, PermissionError) or status in (401, 403) or "credentials" in reason.lower():
        return ConfigError(
            f"{address} cannot be read ({reason}): the credentials are missing or not sufficient; set those of this "
            "protocol in the environment or its own configuration file"
        )
    if is_outage(error):
        return OSError(number if number in OUTAGES else errno.EIO, reason)
    if isinstance(error, OSError) and status is None and (number is None or number < 0):  # of a name server
        return OSError(errno.EIO, reason)
    if type(error).__name__ == "TooManyRedirects":
        reason = "the server redirects without end"
    return ConfigError(f"{address} cannot be read: {reason}; correct the address, or download the file")


def is_outage(error: Exception) -> bool:
    """Whether ``error``, of any library, says that a server gave no answer or half of one, or is busy."""
    number, status = getattr(error, "errno", None), http_status(error)
    kinds = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    return number in OUTAGES or bool(kinds & _OUTAGE_TYPES) or (status or 0) >= 500 or status in _OUTAGE_STATUS


def http_status(error: Exception) -> int | None:
    """The status that a web server answered with."""
    owners = (error, getattr(error, "response", None))
    found = (getattr(owner, name, None) for owner in owners for name in ("status", "status_code", "code"))
    return next((status for status in found if isinstance(status, int) and status >= 400), None)
