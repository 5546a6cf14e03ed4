"""Which errors of the system and of libraries are a user's or a machine's, and not this program's."""

import errno

import pytest

from bert_pretrain.errors import EXIT_MISTAKE, EXIT_OUTAGE, on_one_line, with_type
from bert_pretrain.options.entry_point import exit_on_config_error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), EXIT_MISTAKE),
        (OSError(errno.EIO, "Input/output error"), EXIT_OUTAGE),
        (RuntimeError("I/O error: No space left on device (os error 28)"), EXIT_MISTAKE),  # safetensors
        (RuntimeError("Unable to write (file write failed: errno = 122, disk quota exceeded)"), EXIT_MISTAKE),  # HDF5
    ],
)
def test_a_disk_that_fails_in_any_command_is_one_line(error: Exception, status: int, capsys) -> None:
    @exit_on_config_error
    def command() -> None:
        raise error

    with pytest.raises(SystemExit, match=str(status)):
        command()
    assert capsys.readouterr().err == f"error: {error}\n"


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "x"), RuntimeError("shape"), KeyError("a")])
def test_an_error_of_the_program_keeps_its_traceback(error: Exception) -> None:
    @exit_on_config_error
    def command() -> None:
        raise error

    with pytest.raises(type(error)):
        command()


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("no such file", "no such file"),
        ("\n  backend failed:\n\n   g++:  not found \n", "backend failed: g++: not found"),
        (f"CUDA error\n{'a' * 150}\n{'b' * 150}", f"CUDA error {'a' * 150}"),
        ("c" * 300 + "\nmore", "c" * 300),
        ("", "RuntimeError"),
    ],
)
def test_a_message_on_one_line_keeps_its_first_line_and_what_fits(message: str, shown: str) -> None:
    assert on_one_line(RuntimeError(message)) == shown
    assert with_type(RuntimeError(message)) == f"RuntimeError: {shown}"
