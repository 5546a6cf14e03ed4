"""Version and commit of the program: of a checkout, a package in another project's checkout, and a wheel."""

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from repository_root import ROOT

from bert_pretrain import program


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=me", "-c", "user.email=me@localhost", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *who, "-C", str(folder), *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small project with a package and one commit."""
    package = tmp_path / "project" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    git(tmp_path, "init", "-q", "project")
    git(package, "add", ".")
    git(package, "commit", "-q", "-m", "first")
    return package


def test_the_commit_of_a_checkout_and_whether_files_differ_from_it(checkout: Path) -> None:
    known = git(checkout, "rev-parse", "--short", "HEAD").strip()
    assert program.commit(checkout) == known
    program.commit.cache_clear()
    (checkout / "__init__.py").write_text("changed = True\n")
    assert program.commit(checkout) == f"{known}-dirty"


def test_a_package_inside_another_project_has_not_that_projects_commit(checkout: Path) -> None:
    installed = checkout.parent / ".venv" / "site-packages" / "bert_pretrain"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert program.commit(installed) == ""


def test_without_git_there_is_no_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program.commit(checkout) == ""


def test_a_wheel_has_the_commit_of_its_checkout(tmp_path: Path) -> None:
    """Built from a small checkout of our own packaging files; then from a folder that git does not know."""
    project = tmp_path / "project"
    for name in ("bert_pretrain", "data_prep", "configs"):
        (project / name).mkdir(parents=True)
        (project / name / "__init__.py").write_text("")
    for name in (".gitignore", "pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    shutil.copy(program.__file__, project / "bert_pretrain")
    git(tmp_path, "init", "-q", "project")
    git(project, "add", ".")
    git(project, "commit", "-q", "-m", "first")
    known = git(project, "rev-parse", "--short", "HEAD").strip()

    def written(folder: Path) -> str | None:
        built = WheelBuilder(str(folder)).build(directory=str(tmp_path / f"wheel of {folder.name}"))
        with zipfile.ZipFile(next(built)) as wheel:
            assert len(wheel.namelist()) == len(set(wheel.namelist()))
            path = "bert_pretrain/COMMIT"
            return wheel.read(path).decode() if path in wheel.namelist() else None

    assert written(project) == f"{known}\n"
    assert git(project, "status", "--porcelain") == "", "building leaves no file behind"
    shutil.rmtree(project / ".git")
    unknown = project.rename(tmp_path / "unknown")
    assert written(unknown) is None
    (unknown / "bert_pretrain" / "COMMIT").write_text("0123abc\n")  # as in a source archive
    assert written(unknown.rename(tmp_path / "archive")) == "0123abc\n"
