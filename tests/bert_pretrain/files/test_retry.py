"""Outages are tried again for minutes; the user's errors are not."""

import errno
import os

import pytest

from bert_pretrain.errors import EXIT_MISTAKE, EXIT_OUTAGE, ConfigError, OutageError, as_config_error
from bert_pretrain.files import retry
from bert_pretrain.files.retry import PAUSES, retried


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", slept.append)
    return slept


def failing(number: int, times: int) -> object:
    remaining = [number] * times

    def work() -> str:
        if remaining:
            raise OSError(remaining.pop(), os.strerror(number))
        return "done"

    return work


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_an_outage_is_waited_out_and_told_once(pauses: list[float], number: int) -> None:
    told: list[str] = []
    assert retried(failing(number, 4), "shard a", told.append) == "done"  # type: ignore[arg-type]
    assert pauses == list(PAUSES[:4])
    assert told[0].startswith("shard a cannot be read now")
    assert told[1:] == ["shard a can be read again"]


def test_an_outage_that_lasts_ends_with_the_status_that_is_restarted(pauses: list[float]) -> None:
    with pytest.raises(OutageError, match=r"shard a cannot be read .* run the same command again") as error:
        retried(failing(errno.EIO, 99), "shard a")  # type: ignore[arg-type]
    assert sum(pauses) > 120
    assert error.value.exit_status == EXIT_OUTAGE


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EMFILE])
def test_the_user_s_errors_are_raised_at_once(pauses: list[float], number: int) -> None:
    with pytest.raises(OSError, match=os.strerror(number)) as error:
        retried(failing(number, 1), "shard a")  # type: ignore[arg-type]
    assert not pauses
    assert as_config_error(error.value).exit_status == EXIT_MISTAKE
    assert not isinstance(as_config_error(error.value), OutageError)
    assert isinstance(as_config_error(error.value), ConfigError)
