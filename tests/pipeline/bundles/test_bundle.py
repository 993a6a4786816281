import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import signal
import traceback
from pathlib import Path

import pytest

from pipeline.bundles import whole_folder
from pipeline.bundles.bundle import (
    MANIFEST_LIMIT_BYTES,
    MANIFEST_NAME,
    PROGRAM_NAME,
    Bundle,
    Manifest,
    cache_folder,
    check_destination,
    file_sha256,
)
from pipeline.errors import BundleError


@pytest.fixture
def bundle(make_bundle):
    return make_bundle()


@pytest.fixture
def rewrite(bundle):
    """``rewrite(field=value)``: changes the manifest on disk; None removes a field."""

    def change(**fields):
        path = bundle.folder / MANIFEST_NAME
        entries = {**json.loads(path.read_text()), **fields}
        path.write_text(json.dumps({name: value for name, value in entries.items() if value is not None}))
        return bundle.folder

    return change


def write_again(bundle, folder):
    return Bundle.write(folder, bundle.manifest, {PROGRAM_NAME: b"new"})


def test_round_trip(make_bundle):
    written = make_bundle(
        model="häuser, “v2”",
        task="classes",
        classes=("Hintergrund", "straße"),
        frame_size_hw=(720, 1280),
        precision="fp16",
        contract={"name": "stream", "mean": [0.5, 0.25, 0.125]},
        weights={"file": "w.pth", "sha256": "00"},
        verification={"iou": 0.996},
        tools={"torch": "2.13"},
    )
    read = Bundle.read(written.folder)
    assert read == written
    assert read.manifest.frame_size_hw == (720, 1280)
    assert read.manifest.classes == ("Hintergrund", "straße")
    assert read.program_path.is_file()


def test_the_manifest_is_for_people_too(bundle):
    text = (bundle.folder / MANIFEST_NAME).read_text(encoding="utf-8")
    unsaid = ("composes", "pixels", "views")  # at their defaults
    assert list(json.loads(text)) == [field.name for field in dataclasses.fields(Manifest) if field.name not in unsaid]
    assert text.startswith('{\n  "model": "red",\n')


def test_views_in_nv12_say_so_and_those_of_old_are_bgr(make_bundle, rewrite):
    old = make_bundle("old", pixels="nv12", composes=True)
    assert "views" not in json.loads((old.folder / MANIFEST_NAME).read_text())
    assert Bundle.read(old.folder).manifest.views == "bgr"
    written = make_bundle(pixels="nv12", composes=True, views="nv12")
    assert json.loads((written.folder / MANIFEST_NAME).read_text())["views"] == "nv12"
    assert Bundle.read(written.folder).manifest.views == "nv12"
    for entries in (
        {"views": "rgb"},
        {"views": ["nv12"]},
        {"views": "nv12", "composes": False},
        {"views": "nv12", "pixels": "bgr"},
    ):
        with pytest.raises(
            BundleError, match=r"expected bgr for views, or nv12 of a program that composes and takes NV12: "
        ):
            Bundle.read(rewrite(**{"pixels": "nv12", "composes": True, **entries}))


def test_a_program_of_nv12_says_so(make_bundle, rewrite):
    written = make_bundle(pixels="nv12", frame_size_hw=(4, 6))
    assert json.loads((written.folder / MANIFEST_NAME).read_text())["pixels"] == "nv12"
    assert Bundle.read(written.folder) == written
    assert Bundle.read(rewrite(pixels="bgr")).manifest.pixels == "bgr"
    with pytest.raises(BundleError, match=r"expected an even frame_size_hw for nv12: compile the bundle again$"):
        Bundle.read(rewrite(pixels="nv12", frame_size_hw=[4, 5]))


def test_others_may_read_it(bundle):
    assert bundle.folder.stat().st_mode & 0o777 == 0o755


def test_sha256_of_every_file_is_filled_in(bundle):
    assert bundle.manifest.files == {PROGRAM_NAME: file_sha256(bundle.program_path)}


def test_a_changed_byte_is_found(bundle):
    content = bytearray(bundle.program_path.read_bytes())
    content[len(content) // 2] ^= 1
    bundle.program_path.write_bytes(content)
    with pytest.raises(
        BundleError, match=r"program.onnx: expected sha256 [0-9a-f]{12}…, got [0-9a-f]{12}….*compile the bundle"
    ):
        Bundle.read(bundle.folder)


def test_a_missing_file_is_named(bundle):
    bundle.program_path.unlink()
    with pytest.raises(BundleError, match=r"program.onnx: cannot be read \(No such file"):
        Bundle.read(bundle.folder)


def test_no_folder(tmp_path):
    with pytest.raises(
        BundleError, match=r"nowhere: expected a bundle folder, got nothing: make it with python -m compile"
    ):
        Bundle.read(tmp_path / "nowhere")


def test_a_file_is_no_bundle(tmp_path):
    (tmp_path / "w.onnx").touch()
    with pytest.raises(BundleError, match=r"w.onnx: expected a bundle folder, got a file"):
        Bundle.read(tmp_path / "w.onnx")


def test_a_name_longer_than_names_may_be_is_no_bundle():
    with pytest.raises(BundleError, match="got nothing"):
        Bundle.read("a" * 5000)


def test_a_folder_without_manifest(tmp_path):
    with pytest.raises(BundleError, match=r"expected a bundle with manifest.json, cannot read it \(No such file"):
        Bundle.read(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "no json", '{"schema": 1', "[" * 100_000, b"\xff\xfe\x00".decode("latin-1"), '{"schema": 1}{}']
)
def test_what_is_no_json(bundle, text):
    (bundle.folder / MANIFEST_NAME).write_text(text)
    with pytest.raises(
        BundleError, match=r"manifest.json: expected JSON, got other text \(.*: compile the bundle again$"
    ):
        Bundle.read(bundle.folder)


def test_a_manifest_without_end_is_not_read(bundle):
    (bundle.folder / MANIFEST_NAME).write_bytes(b" " * (MANIFEST_LIMIT_BYTES + 1))
    with pytest.raises(BundleError, match=f"expected at most {MANIFEST_LIMIT_BYTES} bytes, got more"):
        Bundle.read(bundle.folder)


@pytest.mark.parametrize(("schema", "got"), [(0, "0"), (2, "2"), ("1", "1"), (None, "None")])
def test_another_schema_names_both(rewrite, schema, got):
    with pytest.raises(BundleError, match=f"expected schema 1, got {got}: compile the bundle again with this version"):
        Bundle.read(rewrite(schema=schema))


def test_a_list_is_no_manifest(bundle):
    (bundle.folder / MANIFEST_NAME).write_text("[]")
    with pytest.raises(BundleError, match="expected schema 1, got list"):
        Bundle.read(bundle.folder)


@pytest.mark.parametrize(
    "field",
    ["model", "task", "classes", "network_size_hw", "precision", "contract", "weights", "tools", "created"],
)
def test_a_missing_field_is_named(rewrite, field):
    with pytest.raises(BundleError, match=f"missing or unknown field '{field}'"):
        Bundle.read(rewrite(**{field: None}))


def test_an_unknown_field_is_named(rewrite):
    with pytest.raises(BundleError, match="missing or unknown field 'autorun'"):
        Bundle.read(rewrite(autorun="rm"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", 5),
        ("created", 2026),
        ("task", "detection"),
        ("task", ["binary"]),
        ("precision", "int4"),
        ("classes", []),
        ("classes", "road"),
        ("classes", {"road": 1}),
        ("classes", [1, 2]),
        ("classes", 3),
        ("network_size_hw", [320]),
        ("network_size_hw", [320, 320, 3]),
        ("network_size_hw", [0, 320]),
        ("network_size_hw", "32"),
        ("network_size_hw", [float("inf"), 320]),
        ("network_size_hw", [float("nan"), 320]),
        ("frame_size_hw", [-1, 5]),
        ("frame_size_hw", ["a", "b"]),
        ("contract", []),
        ("weights", "w.pth"),
        ("tools", 1),
        ("verification", []),
        ("files", ["program.onnx"]),
        ("pixels", "rgb"),
        ("pixels", ["nv12"]),
        ("pixels", True),
        ("pixels", "17x8"),
        ("contract", {"tile": [[4, 4], 3]}),
        ("contract", {"tile": 4}),
    ],
)
def test_fields_of_a_wrong_type_or_value(rewrite, field, value):
    with pytest.raises(
        BundleError,
        match=r"manifest.json: (a field has a wrong type|unknown task|expected (text|an object|bgr, nv12|tile))",
    ):
        Bundle.read(rewrite(**{field: value}))


def test_a_bundle_without_a_program(rewrite):
    with pytest.raises(BundleError, match=r"expected a sha256 for program.onnx, got none"):
        Bundle.read(rewrite(files={}))


@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "/etc/passwd", "a\0b"])
def test_names_outside_the_bundle_are_refused(bundle, rewrite, name):
    (bundle.folder.parent / "secret").write_text("s")
    with pytest.raises(BundleError, match=r"expected file names inside the bundle, got .*: do not use this bundle"):
        Bundle.read(rewrite(files={**bundle.manifest.files, name: "00"}))


@pytest.mark.parametrize("value", [None, 5, "", "AB" * 32, ["a"]])
def test_a_sum_that_is_none(bundle, rewrite, value):
    with pytest.raises(BundleError, match=r"program.onnx: expected sha256"):
        Bundle.read(rewrite(files={PROGRAM_NAME: value}))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_read(bundle, make):
    bundle.program_path.unlink()
    make(bundle.program_path)
    with pytest.raises(BundleError, match=r"program.onnx: expected a file, got something else"):
        Bundle.read(bundle.folder)


def test_a_device_behind_a_link_is_not_read(bundle):
    bundle.program_path.unlink()
    bundle.program_path.symlink_to("/dev/zero")
    with pytest.raises(BundleError, match=r"program.onnx: expected a file, got something else"):
        Bundle.read(bundle.folder)


def test_folders_above_are_made(bundle, tmp_path):
    write_again(bundle, tmp_path / "a" / "b" / "c")
    assert Bundle.read(tmp_path / "a" / "b" / "c").program_path.read_bytes() == b"new"


def test_a_bundle_is_replaced_whole(bundle):
    Bundle.write(bundle.folder, bundle.manifest, {PROGRAM_NAME: b"old", "left.over": b"of the old one"})
    write_again(bundle, bundle.folder)
    assert sorted(os.listdir(bundle.folder)) == [MANIFEST_NAME, PROGRAM_NAME]
    assert Bundle.read(bundle.folder).program_path.read_bytes() == b"new"
    assert os.listdir(bundle.folder.parent) == [bundle.folder.name]


def test_an_empty_folder_is_used(bundle, tmp_path):
    (tmp_path / "empty").mkdir()
    write_again(bundle, tmp_path / "empty")
    assert sorted(os.listdir(tmp_path)) == [bundle.folder.name, "empty"]
    Bundle.read(tmp_path / "empty")


def test_a_link_to_a_bundle_stays_a_link(bundle, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(bundle.folder)
    write_again(bundle, link)
    assert link.is_symlink()
    assert Bundle.read(bundle.folder).program_path.read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == [bundle.folder.name, "link"]


def test_the_current_folder_can_be_replaced(bundle, monkeypatch):
    monkeypatch.chdir(bundle.folder)
    write_again(bundle, ".")
    assert Bundle.read(bundle.folder.absolute()).program_path.read_bytes() == b"new"


def test_a_file_is_not_replaced(bundle, tmp_path):
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(
        BundleError, match=r"thesis.txt: expected a folder for the bundle, got a file: choose another --output"
    ):
        write_again(bundle, tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "years"


def test_a_folder_of_something_else_is_not_replaced(bundle, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years")
    with pytest.raises(
        BundleError, match="expected a new folder or a bundle to replace, got a folder with other files"
    ):
        write_again(bundle, tmp_path / "home")
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years"


@pytest.mark.parametrize(
    ("manifest", "own"),
    [
        ('{"name": "My app", "manifest_version": 3}', "index.html"),
        ('{"kind": "calibration set", "files": [{"name": "calibration/1.png"}]}', "calibration/1.png"),
        ("not even JSON", "thesis.txt"),
        ('{"name": "My app"}', None),
    ],
)
def test_a_folder_with_the_manifest_of_something_else_is_not_replaced(bundle, tmp_path, manifest, own):
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / MANIFEST_NAME).write_text(manifest)
    if own:
        (folder / own).parent.mkdir(exist_ok=True)
        (folder / own).write_text("years")
    with pytest.raises(BundleError, match="a bundle to replace, got a folder with other files"):
        write_again(bundle, folder)
    assert (folder / MANIFEST_NAME).read_text() == manifest
    assert own is None or (folder / own).read_text() == "years"


@pytest.mark.parametrize("own", ["notes.md", "photos/1.jpg"])
def test_a_bundle_with_other_files_in_it_is_not_replaced(bundle, own):
    (bundle.folder / own).parent.mkdir(exist_ok=True)
    (bundle.folder / own).write_text("years")
    with pytest.raises(BundleError, match=rf"got a folder with other files \({own}\)"):
        write_again(bundle, bundle.folder)
    assert (bundle.folder / own).read_text() == "years"


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", None])
def test_a_damaged_bundle_is_replaced(bundle, damage):
    (bundle.folder / "engines").mkdir(exist_ok=True)
    (bundle.folder / "engines" / "plan.engine.sm90.cache").write_bytes(b"of the runtime")
    if damage is None:
        (bundle.folder / PROGRAM_NAME).unlink()
    else:
        (bundle.folder / MANIFEST_NAME).write_bytes(damage)
    write_again(bundle, bundle.folder)
    assert Bundle.read(bundle.folder).program_path.read_bytes() == b"new"


@pytest.mark.parametrize("name", [MANIFEST_NAME, PROGRAM_NAME])
def test_a_named_pipe_in_a_bundle_is_not_waited_for(bundle, name):
    (bundle.folder / name).unlink()
    os.mkfifo(bundle.folder / name)
    with pytest.raises(BundleError, match=r"no file|expected a file, got something else"):
        Bundle.read(bundle.folder)


def test_below_a_file_nothing_can_be_made(bundle, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match=r"bundle: cannot be written \(.*file is a file\): choose another --output"):
        write_again(bundle, tmp_path / "file" / "bundle")


@pytest.mark.parametrize("folder", ["/proc/bundle", "/proc/a/bundle"])
def test_where_not_even_root_can_write(bundle, folder):
    with pytest.raises(BundleError, match=f"^{folder}: cannot be written"):
        write_again(bundle, Path(folder))


def test_no_permission_is_said_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(BundleError, match=r"cannot be written \(no permission to write in"):
        check_destination(tmp_path / "bundle")


def test_a_full_disk_leaves_the_old_bundle_and_nothing_else(bundle, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BundleError, match="No space left on device"):
        write_again(bundle, bundle.folder)
    monkeypatch.undo()
    assert Bundle.read(bundle.folder) == bundle
    assert os.listdir(bundle.folder.parent) == [bundle.folder.name]


@pytest.fixture
def no_exchange(monkeypatch):
    """A file system on which two folders cannot change places in one step."""
    monkeypatch.setattr(whole_folder, "_exchange", lambda *_: False)


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "broken disk"), KeyboardInterrupt()])
def test_a_failure_between_the_two_renames_puts_the_old_bundle_back(bundle, no_exchange, monkeypatch, failure):
    replace, calls = os.replace, []

    def last_fails(source, target):
        calls.append((source, target))
        if len(calls) == 3:  # the first one finds that the place is taken
            raise failure
        replace(source, target)

    monkeypatch.setattr(os, "replace", last_fails)
    with pytest.raises((BundleError, KeyboardInterrupt)):
        write_again(bundle, bundle.folder)
    monkeypatch.undo()
    assert Bundle.read(bundle.folder) == bundle
    assert os.listdir(bundle.folder.parent) == [bundle.folder.name]


def test_without_an_exchange_a_bundle_is_replaced_whole(bundle, no_exchange):
    write_again(bundle, bundle.folder)
    assert Bundle.read(bundle.folder).program_path.read_bytes() == b"new"
    assert os.listdir(bundle.folder.parent) == [bundle.folder.name]


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_two_write_one_place_while_a_third_reads(bundle, tmp_path, monkeypatch, exchange, there):
    if not exchange:
        monkeypatch.setattr(whole_folder, "_exchange", lambda *_: False)
    place = tmp_path / "cache" / "bundle"
    sizes = {1000, 200_000}

    def write(size):
        for _ in range(40):
            Bundle.write(place, bundle.manifest, {PROGRAM_NAME: bytes(size)})

    def read(_):
        for _ in range(80):
            assert Bundle.read(place).manifest.files[PROGRAM_NAME] in sums

    sums = {hashlib.sha256(bytes(size)).hexdigest() for size in sizes}
    if there:
        write(1000)
    started = [_forked(write, size) for size in sizes] + ([_forked(read, 0)] if there else [])
    assert [os.waitpid(child, 0)[1] for child in started] == [0] * len(started)
    assert Bundle.read(place).manifest.files[PROGRAM_NAME] in sums
    assert os.listdir(place.parent) == ["bundle"]


def _forked(work, given):
    """The work in a process of its own, whose status is not 0 where it raised."""
    child = os.fork()
    if child == 0:
        try:
            work(given)
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    return child


def test_what_a_killed_process_left_goes_with_the_next_one_and_what_is_being_written_stays(bundle, tmp_path):
    def die(number):
        with whole_folder.whole_folder(tmp_path / "other") as scratch:
            (scratch / "half").touch()
            os.kill(os.getpid(), number)

    os.waitpid(_forked(die, signal.SIGKILL), 0)
    (left,) = (name for name in os.listdir(tmp_path) if name.startswith("."))
    with whole_folder.whole_folder(tmp_path / "third") as scratch:
        assert not (tmp_path / left).exists()
        write_again(bundle, bundle.folder)
        assert scratch.is_dir()
    assert sorted(os.listdir(tmp_path)) == ["bundle", "third"]


def test_a_file_system_without_locks_does_without(bundle, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", none)
    write_again(bundle, bundle.folder)
    assert Bundle.read(bundle.folder).program_path.read_bytes() == b"new"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"EDGEMASK_CACHE": "/a/b"}, "/a/b"),
        ({"EDGEMASK_CACHE": "~/c"}, "/home/u/c"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/edgemask"),
        ({}, "/home/u/.cache/edgemask"),
    ],
)
def test_cache_folder(monkeypatch, variables, expected):
    for name in ("EDGEMASK_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/u")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)


def test_a_bundle_that_appears_while_its_place_is_looked_at_is_no_other_content(tmp_path, monkeypatch):
    place = tmp_path / "bundle"

    def another_is_first(path):
        place.mkdir()
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "listdir", another_is_first)
    check_destination(place)
