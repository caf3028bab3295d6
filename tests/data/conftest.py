import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from pictures import CIFAR10, MakeFolder, write_picture

# The same examples in every run, and no clock: a busy machine is no failure.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")

ARCHIVE = Path(__file__).parents[3] / "shared" / "data" / "cifar10-jpeg.tar.xz"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has its own cache and working directory, no data folder, and no network."""

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setenv("TUNE_FUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TUNE_FUSION_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Writes JPEG files: ``make_folder({"train/cat": 3})`` gives ``photos/train/cat/{0,1,2}.jpg``."""

    def make(counts: dict[str, int]) -> Path:
        root = tmp_path / "photos"
        for seed, (name, count) in enumerate(counts.items()):
            (root / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                write_picture(root / name / f"{number}.jpg", 1000 * seed + number)
        return root

    return make


@pytest.fixture(scope="session")
def jpeg_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty training photographs of each CIFAR-10 class, and a test part whose files are damaged."""
    if not ARCHIVE.is_file():
        pytest.skip(f"{ARCHIVE} is not here")
    root = tmp_path_factory.mktemp("jpeg")
    with tarfile.open(ARCHIVE) as archive:
        wanted = [f"train/{name}/{n:04d}.jpg" for name in CIFAR10 for n in range(30)]
        missing = set(wanted)
        for member in archive:
            if member.name in missing:
                archive.extract(member, root, filter="data")
                missing.discard(member.name)
            if not missing:
                break
    assert not missing
    for name in CIFAR10:
        (root / "test" / name).mkdir(parents=True)
        (root / "test" / name / "0000.jpg").write_bytes(b"never to be opened")
    return root
