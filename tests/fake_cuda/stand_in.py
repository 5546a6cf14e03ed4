"""Builds ``stand_in.cpp`` against torch's own headers, and loads it. ``load`` must run before torch is first used.

With it a CPU build of torch accepts fake CUDA tensors (torch's ``FakeTensorMode``) in autograd.
"""

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

SOURCE = Path(__file__).with_name("stand_in.cpp")


def missing() -> str:
    """Why it cannot be built here, in one line; empty if it can."""
    if any((_torch_folder() / "lib").glob("libtorch_cuda*")):
        return f"torch {version('torch')} is not a CPU build: it has a libtorch_cuda of its own"
    return "" if _compiler() else "no C++ compiler (c++, g++ or clang++; or CXX) on the path"


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++", "clang++"))), None)


def _torch_folder() -> Path:
    """Without importing torch."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def build() -> Path:
    """The shared library, compiled once for each torch and source. Raises RuntimeError with the compiler's message."""
    compiler, include = _compiler(), _torch_folder() / "include"
    assert compiler is not None
    key = hashlib.sha256(f"{version('torch')} {compiler}".encode() + SOURCE.read_bytes()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bert_pretrain_tests"
    library = cache / f"fake_cuda_{key}.so"
    if library.exists():
        return library
    cache.mkdir(parents=True, exist_ok=True)
    partial = library.with_suffix(f".{os.getpid()}.partial")
    folders = [f"-I{include}", f"-I{include / 'torch/csrc/api/include'}"]
    command = [compiler, "-std=c++20", "-O0", "-shared", "-fPIC", *folders, str(SOURCE), "-o", str(partial)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{compiler} failed: {done.stderr.strip()[-2000:]}")
    partial.rename(library)
    return library


def load() -> None:
    """Register the stand-in with this process's torch, which must not be imported yet."""
    library, folder = build(), _torch_folder() / "lib"
    for pattern in ("libgomp*.so*", "libc10.so", "libtorch_cpu.so"):
        for path in folder.glob(pattern):
            ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library)).register_stand_in()
