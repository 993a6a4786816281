"""The lock file, the bill of materials and the audit say what is so."""

import importlib.util
import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def script(name):
    """A file of .ci as a module."""
    spec = importlib.util.spec_from_file_location(f"ci_{name}", ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


lock, audit = script("lock"), script("audit")


def wanted():
    """What pyproject.toml asks for, but for extras that the lock file leaves to others."""
    _, dependencies, rest = re.split(
        r"^(?:dependencies = \[|\[project\.optional-dependencies\])", PROJECT, flags=re.MULTILINE
    )
    extras = dict(re.findall(r"^([\w-]+) = \[(.*?)\]$", rest.split("[project.scripts]")[0], re.MULTILINE | re.DOTALL))
    taken = [
        dependencies,
        *(extras[name] for name in ("cpu", "compile", "page", "heic", "plots", "energy", "triton", "mqtt", "dev")),
    ]
    found = [re.sub(r"#.*", "", body) for body in taken]
    return [
        Requirement(text)
        for body in found
        for text in re.findall(r'"([^"]+)"', body)
        if not text.startswith("edgemask")
    ]


def test_the_lock_has_all_that_is_asked_for_in_a_version_that_fits():
    locked = lock.locked(LOCK)
    requirements = wanted()
    assert len(requirements) > 25
    for one in requirements:
        if one.marker is None or one.marker.evaluate():
            assert locked[canonicalize_name(one.name)] in one.specifier, one


def test_every_pin_has_sums_and_no_place():
    pins = re.split(r"\n(?=\S)", LOCK.strip())
    assert len(pins) > 80
    for pin in pins:
        assert re.match(r"[\w.-]+==\S+", pin), pin
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", pin), pin
    assert not re.search(r"https?:|file:|--index|--find-links|@ ", LOCK)


def test_differences_are_named():
    assert lock.difference({"av": "1", "numpy": "2"}, {"av": "1", "numpy": "2", "more": "3"}) == (
        "ran against the 2 versions of requirements.lock"
    )
    assert lock.difference({"av": "1", "numpy": "2", "six": "3"}, {"av": "1", "numpy": "2.1"}) == (
        "ran against requirements.lock but for 2 of 3, with the lock's version: numpy 2.1 (2), six missing (3)"
    )


def test_the_lock_is_read_for_this_python():
    other = "av==1.0 ; python_full_version < '3' \\\n    --hash=sha256:00\nav==2.0 ; python_full_version >= '3' \\\n"
    assert lock.locked(other) == {"av": "2.0"}


HOLE = {"name": "pillow", "version": "11.3.0", "vulns": [{"id": "CVE-1", "fix_versions": ["12.3"]}]}
CLEAN = {"name": "av", "version": "18.1.0", "vulns": []}
SKIPPED = {"name": "av", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "status", "code", "said"),
    [
        ([CLEAN], 0, 0, "audit: 0 known holes in 1 packages"),
        ([CLEAN, HOLE], 1, 1, "audit: 1 known holes in 2 packages\npillow 11.3.0: CVE-1, mended in 12.3"),
        ([CLEAN, SKIPPED], 0, 0, "audit: 0 known holes in 1 packages, 1 not in the database"),
        ([SKIPPED], 0, 0, "audit: no advisory database answers from here: nothing was checked"),
    ],
)
def test_an_audit_is_reported(packages, status, code, said):
    assert audit.verdict(status, json.dumps({"dependencies": packages, "fixes": []})) == (said, code)


def test_an_audit_without_an_answer_is_no_failure():
    assert audit.verdict(1, "") == ("audit: no advisory database answers from here: nothing was checked", 0)


@pytest.mark.network
def test_the_bill_of_materials_is_valid_and_names_what_is_installed():
    binaries = Path(sys.executable).parent
    command = ["make", "sbom", f"VENV={binaries.parent}", "-o", f"{binaries.parent}/.dev"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=500)  # --validate: a wrong one fails
    text = (ROOT / "dist" / "edgemask.cdx.json").read_text(encoding="utf-8")
    bill = json.loads(text)
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "edgemask"
    versions = {one["name"].lower(): one["version"] for one in bill["components"]}
    for name in ("numpy", "av", "pillow", "onnxruntime", "torch", "aiohttp"):
        assert versions[name] == version(name)
    assert str(ROOT) not in text
    assert any(one["dependsOn"] for one in bill["dependencies"] if one["ref"].startswith("aiohttp"))
