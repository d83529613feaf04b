"""``doctor``: finds what is missing and gives the line that mends it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evalharness.doctor import Check, Status, examine
from evalharness.registry import Registry

Call = Callable[..., Any]


def findings(output: Path, plugins: list[str] | None = None) -> dict[str, Check]:
    return {check.name: check for check in examine(Registry(plugins or []), "toy", output)}


def test_this_environment_runs_the_toy(call: Call) -> None:
    result = call("doctor", "--model", "toy", "--json")
    report = json.loads(result.out)
    assert result.code == 0, report
    assert report["works"] is True
    by_name = {check["name"]: check for check in report["checks"]}
    assert by_name["torch"]["detail"] == importlib.metadata.version("torch")
    assert by_name["video codec"]["status"] == "ok"
    assert by_name["protocol toy"]["detail"] == "6 prompts, 2 dimensions, all metrics load"


def test_a_missing_package_fails_with_the_line_that_installs_it(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ["no-such-package>=2.5", "torch>=999", "no-such-extra>=1; extra == 'decord'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    found = findings(tmp_path)
    assert found["no-such-package"].status is Status.FAIL
    assert found["no-such-package"].fix == 'pip install "no-such-package>=2.5"'
    assert found["torch"].status is Status.FAIL
    assert found["torch"].fix == 'pip install --upgrade "torch>=999"'
    assert found["no-such-extra"].status is Status.WARN


METRIC = """
from evalharness.api import MetricInfo, WeightFile

class Heavy:
    name = "heavy"
    dimension = "motion"
    summary = "needs a file"
    info = MetricInfo(weights=(WeightFile(path="heavy.bin", sha256="{sha256}", licence="MIT"),))
    def score(self, video, sample):
        return 0.0

PLUGINS = {{"metrics": {{"heavy": Heavy}}}}
"""


@pytest.mark.parametrize("content", [b"right", b"wrong", None])
def test_weights_are_verified(toy: Path, tmp_path: Path, content: bytes | None) -> None:
    plugin = tmp_path / "heavy_plugin.py"
    plugin.write_text(METRIC.format(sha256=hashlib.sha256(b"right").hexdigest()))
    if content is not None:
        (tmp_path / "heavy.bin").write_bytes(content)
    check = findings(tmp_path, [str(plugin)])["metric heavy"]
    if content == b"right":
        assert check.status is Status.OK
        assert "MIT" in check.detail
    else:
        assert check.status is Status.FAIL
        assert ("missing" if content is None else "SHA-256 differs") in check.detail
        assert check.fix


def test_an_unknown_model_cannot_work(call: Call) -> None:
    result = call("doctor", "--model", "tooy")
    assert result.code == 1
    assert "did you mean 'toy'" in result.out
    assert "the default run cannot work here: model tooy" in result.out.splitlines()[-1]


def test_a_full_disk_is_seen(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)._replace(free=10_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    check = findings(tmp_path / "runs" / "toy")["run folder"]
    assert check.status is Status.FAIL
    assert "0.0 GB free" in check.detail
    assert "--output" in check.fix


def test_a_metric_that_looks_after_its_weights_only_warns(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that a user has to fetch are no defect of the installation."""
    from evalharness.native.base import NativeMetric

    name = next(c.name for c in findings(tmp_path).values() if c.name.startswith("metric vbench."))
    assert findings(tmp_path)[name].status is Status.WARN
    monkeypatch.setattr(NativeMetric, "missing", [])
    assert name not in findings(tmp_path)
