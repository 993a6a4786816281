"""A corpus, the command over it, and what tells whether two folders of results are the same."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.corpus.__main__ import main as corpus_main

ROOT = Path(__file__).parents[3]

# Before Python begins: a file whose name begins with "killer" ends the process that reads it, as a decoder's bug does, and one
# whose name begins with "hanger" is never through.
KILLER = """
import os, pathlib, signal, sys, time
import av

def dies_of(path):
    if os.path.basename(str(path)).startswith("hanger"):
        time.sleep(1e6)
    if os.path.basename(str(path)).startswith("killer") and not str(path).endswith(".killed"):
        with open(os.environ["KILLED"], "a") as log:
            log.write(os.path.basename(str(path)) + "\\n")
        os.kill(os.getpid(), signal.SIGSEGV)

open_video, open_file = av.open, pathlib.Path.open

def video(file, *arguments, **options):
    if arguments[:1] != ("w",):
        dies_of(file)
    return open_video(file, *arguments, **options)

def file(path, mode="r", *arguments, **options):
    if mode == "rb" and "results" not in str(path):
        dies_of(path)
    return open_file(path, mode, *arguments, **options)

av.open, pathlib.Path.open = video, file
"""


@pytest.fixture
def run_corpus(red_bundle, tmp_path, capsys):
    """``run_corpus("--shard", "0/2", …)``: the command over ``tmp_path / "in"``, in this process."""

    def run(*arguments, output="results", source=None, model=None):
        given = ("--source", source or tmp_path / "in", "--output", tmp_path / output)
        status = corpus_main([*map(str, (*given, "--model", model or red_bundle.folder, *arguments))])
        out, err = capsys.readouterr()
        assert out == ""
        return SimpleNamespace(status=status, lines=err.splitlines())

    return run


@pytest.fixture
def killing(tmp_path, monkeypatch):
    """Lets files called killer… end the processes that read them, and hanger… hold them; gives the file with a line for each end."""
    (tmp_path / "killing").mkdir()
    (tmp_path / "killing" / "sitecustomize.py").write_text(KILLER)
    monkeypatch.setenv("KILLED", str(tmp_path / "killed"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path / "killing"), str(ROOT))))
    return tmp_path / "killed"


def results(folder):
    """{name: sha256} of every result."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and ".edgemask" not in path.parts and path.name != "failed.jsonl"
    }


def failed(folder):
    """The rows of ``failed.jsonl``, by the name of their source."""
    path = Path(folder) / "failed.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    assert len({row["source"] for row in rows}) == len(rows)
    return {Path(row["source"]).name: row for row in rows}


def parts(folder):
    """What is left of results that did not become whole."""
    return list((Path(folder) / ".edgemask" / "parts").glob("*"))


def command(source, output, bundle, *arguments):
    """The command line of a process of its own."""
    given = ("--source", source, "--output", output, "--model", bundle.folder, "--quiet", *arguments)
    return [sys.executable, "-m", "pipeline.corpus", *map(str, given)]


def started(words):
    """A process of the command."""
    return subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def small_corpus(tmp_path, write_picture, write_video):
    """``tmp_path / "in"``: 6 pictures in two folders and a video, whose red channels are their masks; gives the pictures."""
    rng = np.random.default_rng(3)
    pictures = {name: rng.integers(0, 256, (9, 14, 3), np.uint8) for name in ("a", "b/a", "b/c", "b/d", "b/ü 1", "z")}
    for name, picture in pictures.items():
        write_picture(tmp_path / "in" / f"{name}.png", picture)
    write_video(tmp_path / "in" / "b" / "film.mp4", list(rng.integers(0, 256, (5, 32, 48, 3), np.uint8)))
    return pictures
