"""Files at addresses: found, read by ranges, faults of the server waited out, no credentials in messages."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bert_pretrain.errors import ConfigError, OutageError
from bert_pretrain.files import retry
from bert_pretrain.files.addresses import Address, MissingError, RangeFile, find, is_address, look_up, read_all
from tests.web_server import WebServer

CONTENT = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "PAUSES", (0.01,) * 4)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebServer]:
    pytest.importorskip("aiohttp", reason="fsspec reads https:// with aiohttp (the extra remote)")
    for name in ("a.txt", "b/c.txt", "b/.hidden.txt", "b/d.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(CONTENT)
    with WebServer(tmp_path) as server:
        yield server


@pytest.mark.parametrize(
    ("text", "expected"),
    [("s3://b/x", True), ("https://h/x", True), ("memory://x", True), ("simplecache::s3://b/x", True), ("/a/b", False),
     ("a:b/c", False), ("texts/*.txt", False)],
)  # fmt: skip
def test_what_is_an_address(text: str, expected: bool) -> None:
    assert is_address(text) is expected


def test_a_file_is_read_by_ranges(web: WebServer) -> None:
    with RangeFile(look_up(Address(f"{web.address}/a.txt"))) as file:
        assert file.seek(1000) == 1000
        assert file.read(24) == CONTENT[1000:1024]
        assert file.seek(-5, 2) == len(CONTENT) - 5
        assert file.read(100) == CONTENT[-5:]
        assert file.read(100) == b""
    assert web.bytes_sent["a.txt"] == 29


def test_files_of_a_folder_of_a_web_server(web: WebServer) -> None:
    found = find(Address(f"{web.address}/"), lambda name: name.endswith(".txt"))
    assert [str(file) for file in found] == [f"{web.address}/a.txt", f"{web.address}/b/c.txt"]
    assert [file.size for file in found] == [len(CONTENT)] * 2


def test_folders_and_globs_where_the_protocol_lists() -> None:
    import fsspec

    system = fsspec.filesystem("memory")
    for name in ("x/b.txt", "x/a/z.txt", "x/.no/c.txt", "x/d.csv", "x/a.txt"):
        system.pipe(f"/found/{name}", b"12")
    names = [str(file) for file in find(Address("memory://found/x"), lambda name: name.endswith(".txt"))]
    assert names == [f"memory:///found/x/{name}" for name in ("a/z.txt", "a.txt", "b.txt")]  # as Path sorts
    assert len(find(Address("memory://found/x/*.*"), lambda name: False)) == 3
    assert find(Address("memory://found/x/none*"), lambda name: True) == []


@pytest.mark.parametrize("fault", ["500", "503", "429", "truncated", "closed"])
def test_a_fault_is_waited_out(web: WebServer, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    web.faults["a.txt"] = [fault, fault]
    assert read_all(Address(f"{web.address}/a.txt")) == CONTENT
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith(f"{web.address}/a.txt cannot be read now (")
    assert told[1:] == [f"{web.address}/a.txt can be read again"]


def test_a_server_gone_for_good_is_one_line(web: WebServer) -> None:
    file = RangeFile(Address(f"{web.address}/a.txt"))
    web.down = True
    with pytest.raises(OutageError, match=r"a.txt cannot be read \(.*\), also after .* run the same command again"):
        file.read(10)


@pytest.mark.parametrize(
    ("status", "expected"), [("404", "it is missing"), ("403", "HTTP 403.*credentials"), ("418", "HTTP 418")]
)
def test_a_mistake_is_told_at_once(web: WebServer, status: str, expected: str) -> None:
    file = RangeFile(Address(f"{web.address}/a.txt"))
    web.faults["a.txt"] = [status, status]
    with pytest.raises(ConfigError, match=expected) as error:
        file.read(10)
    assert not isinstance(error.value, OutageError)
    assert "\n" not in str(error.value)
    assert web.faults["a.txt"] == [status], "it is not asked again"


def test_a_missing_file(web: WebServer) -> None:
    with pytest.raises(MissingError, match=r"none.txt cannot be read: it is missing"):
        look_up(Address(f"{web.address}/none.txt"))


def test_a_server_without_ranges(web: WebServer) -> None:
    web.ranges = False
    assert read_all(Address(f"{web.address}/a.txt")) == CONTENT  # the whole file is one range
    with pytest.raises(ConfigError, match="sends the whole file instead of bytes 0 to 10; download it"):
        RangeFile(Address(f"{web.address}/a.txt")).read(10)


def test_a_file_that_changes_is_told(web: WebServer) -> None:
    file = look_up(Address(f"{web.address}/a.txt"))
    (web.folder / "a.txt").write_bytes(CONTENT[:-1])
    with pytest.raises(ConfigError, match="has changed since it was looked up: 10240 bytes"):
        RangeFile(file)


def test_no_message_shows_credentials(web: WebServer) -> None:
    secret = Address(f"{web.address.replace('//', '//user:pass-word@')}/none.txt?X-Signature=abc-def&b=c")
    assert str(secret / "x") == f"{web.address}/none.txt/x"
    assert "abc" not in repr(secret)
    with pytest.raises(ConfigError) as error:
        look_up(secret)
    assert "pass-word" not in str(error.value)
    assert "abc-def" not in str(error.value)


@pytest.mark.parametrize(
    ("address", "expected"),
    [("gs://b/x", "gcsfs.*: pip install gcsfs"), ("nothing://b/x", "no address that fsspec knows"),
     ("s3://b/x", "s3fs.*: pip install 'bert-pretrain\\[remote\\]'")],
)  # fmt: skip
def test_a_missing_library_is_one_message(address: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gcsfs", "s3fs"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(ConfigError, match=expected):
        look_up(Address(address))
