"""``import edgemask``: what is there, that it is light, and that a mistake is one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

import edgemask

ROOT = Path(__file__).parents[2]


def test_every_public_name_exists_and_is_documented():
    for name in edgemask.__all__:
        value = getattr(edgemask, name)
        assert name == "__version__" or value.__doc__, name
    assert set(edgemask.__all__) <= set(dir(edgemask))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = edgemask.nonsense


def test_the_errors_are_one_tree():
    errors = [getattr(edgemask, name) for name in edgemask.__all__ if name.endswith("Error")]
    assert len(errors) > 10
    assert all(issubclass(error, edgemask.EdgemaskError) for error in errors)


def test_a_missing_package_is_told_with_the_command_that_installs_it(tmp_path):
    (tmp_path / "cv2.py").write_text("raise ImportError('no cv2 here')")
    code = "import edgemask\ntry: edgemask.Model\nexcept edgemask.EdgemaskError as error: print(error)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n{code}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert "pip install 'edgemask[cpu]'" in done.stdout
    assert "no cv2 here" in done.stdout


def test_packages_are_typed():
    for package in ("edgemask", "pipeline", "calibration", "compile"):
        assert (ROOT / package / "py.typed").is_file()
