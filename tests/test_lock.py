"""The lock files pin what ``pyproject.toml`` asks for: the packages of every extra, in versions that it allows."""

import re
import tomllib

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {name: wanted for name, wanted in PROJECT["optional-dependencies"].items() if name != "all"}
CONVERT = "requirements-convert.lock"


def pins(name: str) -> dict[str, str]:
    """Versions by package."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    found = [re.fullmatch(r"([\w.-]+)==(\S+?)(?: *; .+)?", line) for line in lines]
    assert all(found), lines
    return {canonicalize_name(match[1]): match[2] for match in found if match}


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_every_package_that_is_asked_for_is_pinned(extra: str) -> None:
    wanted = map(Requirement, EXTRAS[extra] if extra else PROJECT["dependencies"])
    pinned = pins(CONVERT if extra == "convert" else "requirements.lock")
    for requirement in wanted:
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, requirement
        assert requirement.marker is None or requirement.marker.evaluate({**default_environment()})


def test_both_locks_have_the_same_versions_but_of_tensorboard() -> None:
    main, convert = pins("requirements.lock"), pins(CONVERT)
    assert [name for name in main.keys() & convert.keys() if main[name] != convert[name]] == ["tensorboard"]
