"""What is kept of a profile's table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.profile_gemm import SHAPES, main

HEAD = '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n'


def table(path: Path, kernels: int) -> Path:
    rows = [
        f'"{n}","kernel {n}","{name}","{unit}","{n}.5"\n'
        for n in range(kernels)
        for name, unit in (("Duration", "us"), ("Achieved Occupancy", "%"), ("DRAM Throughput", "%"))
    ]
    path.write_text(HEAD + "".join(rows))
    return path


def test_each_kernel_belongs_to_its_shape(tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    given = table(tmp_path / "six.csv", 3 * len(SHAPES))
    assert main(["--of", str(given), "--output", str(output)]) == 0
    kernels = json.loads(output.read_text())["kernels"]
    assert kernels[3] == {
        "m_n_k": "32760x5120x5120", "kernel": "kernel 3", "duration": "3.5 us", "memory": "3.5 %",
    }  # fmt: skip


@pytest.mark.parametrize(("kernels", "words"), [(5, "shorter"), (7, "longer")])
def test_another_number_of_kernels_is_refused(
    kernels: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--of", str(table(tmp_path / "odd.csv", kernels)), "--output", str(tmp_path / "out.json")])
    assert words in capsys.readouterr().err and not (tmp_path / "out.json").exists()


def test_another_table_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit):
        main(["--of", str(other)])
    assert "expected a table of ncu's details" in capsys.readouterr().err
