"""The environment that every test runs in, set before anything of ours is imported."""

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

# Two processes share the tests (-n 2). With a thread for each core in both, they would wait for
# each other most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from mlmlab.runtime.devices import has_native_bf16
from mlmlab.tracking.summary import processor_name

pytest.register_assert_rewrite("refusals")


def pytest_addoption(parser: pytest.Parser) -> None:
    """See test_wrong_input.py."""
    parser.addoption(
        "--regenerate-messages", action="store_true", help="rewrite tests/messages.txt"
    )


def pytest_configure(config: pytest.Config) -> None:
    """No network, quiet libraries, and a separate cache for this session."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if "not hub" in config.option.markexpr:
        os.environ["HF_HUB_OFFLINE"] = "1"
    cache = tempfile.TemporaryDirectory(prefix="mlmlab-test-cache-")
    config.add_cleanup(cache.cleanup)
    os.environ["MLMLAB_CACHE"] = cache.name


def pytest_report_header() -> str:
    """The processor, which decides the last bits of a figure, and what `auto` means on it."""
    capability = torch.backends.cpu.get_cpu_capability()
    bf16 = "native" if has_native_bf16(torch.device("cpu")) else "emulated"
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return f"processor: {processor_name()} ({capability}, {bf16} bf16), CUDA device: {cuda}"


@pytest.fixture
def shared_data() -> Path:
    """The folder with the ELI5-Category file that is no part of the project."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder}, which holds the real text, is not here")
    return folder


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, for claims about what is cached."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("MLMLAB_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def index_package(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Fetches a package from the package index and unpacks it, without installing it."""

    def fetch(requirement: str) -> Path:
        folder = tmp_path_factory.mktemp("package")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder)]
        done = subprocess.run([*command, requirement], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"the package index does not give {requirement}: {done.stderr[-200:]}")
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        return folder

    return fetch
