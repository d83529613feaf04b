"""What a wheel holds: the three packages with their data, and nothing of the tests. A source archive: all."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    [wheel] = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def tracked_files(*folders: str) -> set[str]:
    listing = subprocess.run(
        ["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    return set(listing.stdout.split())


@pytest.mark.slow
def test_the_source_archive_is_the_checkout(tmp_path: Path) -> None:
    """Tests and documents read each other, so an archive with a part of them would fail its own tests."""
    tracked = tracked_files()
    code = f"import hatchling.build; hatchling.build.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    [archive] = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.split("/", 1)[1] for name in files.getnames()}
    assert {name for name in tracked - names if not name.startswith(".ci/")} == set()


@pytest.mark.slow
def test_every_tracked_asset_and_source_is_in_the_wheel(names: set[str]) -> None:
    tracked = tracked_files("qvgen", "baselines", "evalharness")
    assert any(name.endswith(".safetensors") for name in tracked)
    assert any(name.endswith(".j2") for name in tracked)
    assert tracked - names == set()


@pytest.mark.slow
def test_generic_folders_stay_out(names: set[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"qvgen", "baselines", "evalharness"}
