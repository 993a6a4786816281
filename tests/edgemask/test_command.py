"""The installed command: sub-commands, the version, hints, and folders of somebody else's called like our packages."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgemask.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[2]
# What the console script holds.
INSTALLED = f"import sys; sys.path[0] = {str(ROOT)!r}; from edgemask.__main__ import command; sys.exit(command())"


@pytest.fixture
def crowded(tmp_path):
    """A folder of somebody's with packages and modules that are called like ours."""
    for name in ("models", "pipeline", "calibration", "benchmarks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong package')")
    (tmp_path / "compile.py").write_text("raise RuntimeError('the wrong module')")
    cv2.imwrite(str(tmp_path / "picture.png"), np.full((40, 60, 3), 90, np.uint8))
    return tmp_path


def run(*arguments, cwd, start=("-c", INSTALLED)):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "EDGEMASK_CACHE": str(cwd / "cache")}
    return subprocess.run(
        [sys.executable, *start, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_the_command_runs_where_packages_are_called_like_ours(crowded, red_bundle):
    done = run("picture.png", "--model", red_bundle.folder, "--render", "mask", "--output", "out.png", cwd=crowded)
    assert (done.returncode, done.stdout) == (0, "out.png\n"), done.stderr
    assert (cv2.imread(str(crowded / "out.png")) == 90).all()


def test_child_processes_run_where_packages_are_called_like_ours(crowded):
    code = f"import sys; sys.path[0] = {str(ROOT)!r}; from pipeline.builds.build_half import compile_in_process; "
    done = run(start=("-c", code + "compile_in_process(['--model', 'nonsense', '--output', 'x'])"), cwd=crowded)
    assert "BuildError" in done.stderr
    assert "nonsense" in done.stderr
    assert "the wrong" not in done.stderr


@pytest.mark.parametrize("module", ["compile", "calibration", "pipeline", "benchmarks"])
def test_modules_run_where_other_packages_are_called_like_ours(crowded, module):
    for name in (module, f"{module}.py"):  # with one called like itself, Python runs that one, or says so in one line
        path = crowded / name
        if path.is_dir():
            (path / "__init__.py").unlink()
            path.rmdir()
        elif path.exists():
            path.unlink()
    done = run("--help", start=("-m", module), cwd=crowded)
    assert done.returncode == 0, done.stderr
    assert f"python -m {module}" in done.stdout


def test_the_package_works_where_others_are_called_like_its_parts(crowded, red_bundle):
    code = f"""
import sys
sys.path.insert(1, {str(ROOT)!r})
from edgemask import BuildOptions, Model, open_source
with Model({str(red_bundle.folder)!r}) as model, open_source("picture.png") as source:
    print([float(frame.mask.mean()) for frame in model.stream(source)])
"""
    done = run(start=("-c", code), cwd=crowded)
    assert (done.returncode, done.stdout) == (0, "[90.0]\n"), done.stderr
    theirs = "import types, sys; sys.modules['pipeline'] = types.ModuleType('pipeline'); "
    done = run(
        start=("-c", theirs + "sys.modules['pipeline'].__file__ = 'p.py'; import edgemask; edgemask.Model"), cwd=crowded
    )
    assert "ImportError: edgemask: expected its own package 'pipeline'" in done.stderr


def test_version_overview_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("edgemask ")
    assert main([]) == 0
    overview = capsys.readouterr().out
    assert all(command in overview for command in COMMANDS)
    for command in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        assert f"edgemask {command}" in capsys.readouterr().out


def test_a_command_that_is_nearly_one(capsys):
    assert main(["compil", "--model", "u2netp"]) == 2
    assert "edgemask compile" in capsys.readouterr().err
    assert main(["nothing-here.mp4", "--output", "x.mp4"]) == 2
    assert "nothing-here.mp4" in capsys.readouterr().err


def test_importing_the_package_is_light():
    code = "import sys, edgemask; print(len([name for name in sys.modules if name.split('.')[0] in ('pipeline', 'compile')]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
