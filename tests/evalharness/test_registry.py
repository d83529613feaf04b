"""Plugins: found by entry point, loaded when asked for, broken and double ones handled aloud."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from evalharness import hashing
from evalharness.errors import UserError
from evalharness.registry import Registry

REPORTER = """
class Good:
    name = "good"
    summary = "writes nothing"
    def write(self, results, run_folder):
        return []
"""


def install(site: Path, distribution: str, module: str, code: str, entry_points: str) -> None:
    """Lay out an installed distribution by hand, as pip would."""
    (site / f"{module}.py").write_text(code)
    info = site / f"{distribution}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(entry_points)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return tmp_path


def test_listing_imports_nothing(site: Path) -> None:
    install(site, "lazy", "lazy_mod", REPORTER, "[evalharness.reporters]\nlazy = lazy_mod:Good\n")
    registry = Registry()
    assert "lazy" in registry.names("reporters")
    assert "lazy_mod" not in sys.modules
    assert registry.get("reporters", "lazy").name == "good"
    assert "lazy_mod" in sys.modules


def test_a_broken_plugin_is_left_out_with_a_warning_that_names_it(site: Path) -> None:
    install(site, "fine", "fine_mod", REPORTER, "[evalharness.reporters]\nfine = fine_mod:Good\n")
    entry = "[evalharness.reporters]\nburst = burst_mod:Bad\n"
    install(site, "burst-dist", "burst_mod", "raise RuntimeError('no licence')", entry)
    with pytest.warns(UserWarning, match=r"burst.*burst-dist 1\.2.*RuntimeError: no licence"):
        loaded = Registry().load_all("reporters")
    assert "fine" in loaded
    assert "burst" not in loaded
    with pytest.raises(UserError, match=r"'burst' .*burst-dist 1\.2.*no licence"):
        Registry().get("reporters", "burst")


def test_a_plugin_that_exits_on_import_is_left_out_too(site: Path) -> None:
    entry = "[evalharness.reporters]\nquitter = quitter_mod:Bad\n"
    install(site, "quitter", "quitter_mod", "import sys; sys.exit('needs a display')", entry)
    with pytest.warns(UserWarning, match=r"quitter.*SystemExit: needs a display"):
        assert "quitter" not in Registry().load_all("reporters")


def test_a_plugin_without_the_contract_is_broken(site: Path) -> None:
    code = "class Half:\n    name = 'half'\n"
    install(site, "half", "half_mod", code, "[evalharness.metrics]\nhalf = half_mod:Half\n")
    with pytest.raises(UserError, match=r"lacks score\(\)"):
        Registry().get("metrics", "half")


def test_a_name_provided_twice_names_both(site: Path) -> None:
    for name in ("first", "second"):
        install(site, name, f"{name}_mod", REPORTER, f"[evalharness.reporters]\ntwin = {name}_mod:Good\n")
    with pytest.raises(UserError, match="provided twice") as caught:
        Registry().get("reporters", "twin")
    assert "first 1.2" in str(caught.value)
    assert "second 1.2" in str(caught.value)


def test_an_unknown_name_gets_a_suggestion_and_the_list(site: Path) -> None:
    install(site, "fine", "fine2_mod", REPORTER, "[evalharness.reporters]\nglossy = fine2_mod:Good\n")
    with pytest.raises(
        UserError, match=r"unknown reporter 'glosy'; did you mean 'glossy'\? Allowed: .*glossy"
    ):
        Registry().get("reporters", "glosy")


PLUGIN_FILE = REPORTER + '\nPLUGINS = {"reporters": {"from-file": Good}}\n'


def test_a_plugin_file_is_loaded_and_its_hash_recorded(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN_FILE)
    registry = Registry([str(path)])
    assert registry.get("reporters", "from-file").summary == "writes nothing"
    [record] = registry.provenance()
    assert record["source"] == "mine.py"
    # sha256sum of the file, as any user would check it
    import hashlib

    assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert str(tmp_path) not in str(record)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("x = 1", "must define PLUGINS"),
        ("1 / 0", r"raised while loading: ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(3)", r"raised while loading: SystemExit: 3"),
        ("this is no python", "raised while loading: SyntaxError"),
        ('PLUGINS = {"metods": {}}', r"unknown group in PLUGINS .*did you mean 'methods'"),
        ('PLUGINS = {"metrics": {"m": int}}', r"lacks score\(\)"),
    ],
)
def test_a_bad_plugin_file_is_one_clear_error(tmp_path: Path, code: str, words: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(code)
    with pytest.raises(UserError, match=words):
        Registry([str(path)])


def test_a_missing_plugin_file_is_named() -> None:
    with pytest.raises(UserError, match=r"--plugin nowhere\.py: cannot be read"):
        Registry(["nowhere.py"])


def test_a_file_must_not_shadow_an_installed_plugin(site: Path) -> None:
    install(site, "fine", "fine3_mod", REPORTER, "[evalharness.reporters]\nfrom-file = fine3_mod:Good\n")
    path = site / "mine.py"
    path.write_text(PLUGIN_FILE)
    with pytest.raises(UserError, match=r"provided twice: .*fine 1\.2.*mine\.py"):
        Registry([str(path)]).plugin("reporters", "from-file")


def test_editing_any_module_of_a_distribution_changes_its_code_hash(site: Path) -> None:
    entries = "[evalharness.reporters]\none = pack_a:Good\ntwo = pack_b:Good\n"
    install(site, "pack", "pack_a", REPORTER, entries)
    (site / "pack_b.py").write_text(REPORTER)
    (site / "bystander.py").write_text("x = 1")
    before = Registry().code_hash("reporters", "one")
    (site / "bystander.py").write_text("x = 2")
    assert Registry().code_hash("reporters", "one") == before
    (site / "pack_b.py").write_text(REPORTER + "# edited\n")
    assert Registry().code_hash("reporters", "one") != before


@pytest.mark.parametrize(
    ("file", "stale"),
    [
        ("tinyworld/world.py", {"models"}),
        ("tinyworld/training/text2video.py", {"models"}),
        ("tinyworld/judge_nets.py", {"metrics"}),
        ("tinyworld/spec.py", {"models", "metrics"}),
        ("video.py", {"metrics"}),
        ("models/tinyworld.py", {"models"}),
        ("console.py", set()),
    ],
)
def test_the_harness_s_own_plugins_depend_on_what_they_are_built_on(
    monkeypatch: pytest.MonkeyPatch, file: str, stale: set[str]
) -> None:
    plugins = {"models": "tinyworld", "metrics": "tinyworld.color", "protocols": "tinyworld"}
    before = {kind: Registry().code_hash(kind, name) for kind, name in plugins.items()}
    edited = Path(hashing.__file__).parent / file
    assert edited.is_file()

    def as_if_edited(path: Path) -> str:
        return "ab" * 32 if path == edited else real(path)

    real = hashing.file_sha256
    monkeypatch.setattr(hashing, "file_sha256", as_if_edited)
    monkeypatch.setattr("evalharness.registry.file_sha256", as_if_edited)
    after = {kind: Registry().code_hash(kind, name) for kind, name in plugins.items()}
    assert {kind for kind in plugins if before[kind] != after[kind]} == stale


def test_code_is_hashed_once_for_a_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry()
    first = registry.code_hash("metrics", "tinyworld.color")
    monkeypatch.setattr("evalharness.registry.tree_sha256", lambda *_: pytest.fail("read again"))
    assert registry.code_hash("metrics", "tinyworld.color") == first
