# What a search for INT8 found, as it is shown and drawn; and bundles that do not tell it, or tell nonsense.

import dataclasses
import json
import os
import re
import sys

import cv2
import pytest
from matplotlib.colors import to_hex

from compile.inspect.figure import BLUE, ORANGE, png_bytes
from compile.inspect.int8_plot import WIDTH_PX, draw_search
from compile.inspect.int8_search import read_search
from pipeline.bundles.bundle import PROGRAM_NAME, Bundle

WORK = {"first": 0.02, "down.conv": 0.6, "middle.conv": 0.1, "up.conv": 0.2, "out": 0.08}
DAMAGE = {"down.conv": 0.2, "middle.conv": 0.7, "up.conv": 0.1}
FOUND = {
    "source": "pictures/*.jpg",
    "frames": 4,
    "share_of_work": 0.8,
    "iou_in_search": 0.994,
    "exact_channels": {"up.conv": [3, 14]},
    "left": {"first": "the first layer", "middle.conv": "70.0 % of the damage for its work", "out": "a last layer"},
    "layers": [
        {
            "name": name,
            "precision": "int8" if name in ("down.conv", "up.conv") else "fp16",
            "share_of_work": work,
            "share_of_damage": DAMAGE.get(name),
        }
        for name, work in WORK.items()
    ],
    "steps": [
        {"what": "channels to one reach, power 0", "share_of_work": 0.9, "noise": 0.3, "iou": 0.98},
        {"what": "channels to one reach, power 0.5", "share_of_work": 0.9, "noise": 0.2, "iou": 0.985},
        {"what": "3 layers in FP16", "share_of_work": 0.8, "noise": 0.1, "iou": 0.994},
        {"what": "4 layers in FP16", "share_of_work": 0.6, "noise": 0.099, "iou": 0.9945},
    ],
}
ORDER = ["middle.conv", "down.conv", "up.conv", "out", "first"]


def without(*keys):
    return {key: value for key, value in FOUND.items() if key not in keys}


@pytest.fixture
def made(tmp_path, red_bundle):
    """``made(calibration, …)``: the folder of a bundle in INT8."""

    def make(calibration=FOUND, **manifest):
        entries = {"precision": "int8", "verification": {"iou_mean": 0.991, "frames": 8}, **manifest}
        changed = dataclasses.replace(red_bundle.manifest, calibration=calibration, **entries)
        files = {PROGRAM_NAME: red_bundle.program_path.read_bytes()}
        return Bundle.write(tmp_path / "bundle", changed, files).folder

    return make


@pytest.fixture
def look(run):
    """``look(DIR, …)``: the part about INT8."""

    def look(*arguments):
        status, said, errors = run(*arguments)
        assert (status, errors) == (0, "")
        assert max(len(line) for line in said.splitlines()) <= 110
        return said.partition("\nINT8\n")[2]

    return look


def many_layers(count):
    """Layers of one damage less each."""
    total = count * (count + 1) / 2
    return [
        {"name": f"l{index:02}", "precision": "int8", "share_of_work": 1 / count, "share_of_damage": index / total}
        for index in range(1, count + 1)
    ]


# --- the text


def test_layers_by_damage_and_the_steps(look, made):
    said = look(made())
    assert "work        80.0 % of the layers' work in 2 of 5 layers\n" in said
    assert "input channels that drown the others or do most of the damage: 3, 14 of up.conv\n" in said
    rows = re.findall(r"\n  (\S+) +(int8|fp16) +(\S+) % +(\S+)(?: %)?(?=\n)", said)
    assert rows == [
        ("middle.conv", "fp16", "10.00", "70.00"),
        ("down.conv", "int8", "60.00", "20.00"),
        ("up.conv", "int8", "20.00", "10.00"),
        ("out", "fp16", "8.00", "–"),
        ("first", "fp16", "2.00", "–"),
    ]
    assert "All layers, most damage first" in said
    assert re.search(r"\n  1  channels to one reach, power 0 +90\.00 % +0\.300 +0\.9800\n", said)
    assert re.search(r"\n  3  3 layers in FP16 +80\.00 % +0\.100 +0\.9940 +chosen\n", said)
    assert said.count("chosen") == 1


def test_fifteen_layers_unless_all_are_asked_for(look, made):
    folder = made({**FOUND, "layers": many_layers(20)})
    said = look(folder)
    assert re.findall(r"\n  (l\d\d) ", said) == [f"l{index:02}" for index in range(20, 5, -1)]
    assert "The 15 layers that do most damage" in said
    assert "(--layers shows all)" in said
    every = look(folder, "--layers")
    assert re.findall(r"\n  (l\d\d) ", every) == [f"l{index:02}" for index in range(20, 0, -1)]
    assert "shows all" not in every


def test_as_json(run, made):
    _, said, _ = run(made(), "--json")
    found = json.loads(said)["int8"]
    assert [layer["name"] for layer in found["layers"]] == ORDER
    assert found["layers"][2] == {
        "name": "up.conv",
        "precision": "int8",
        "share_of_work": 0.2,
        "share_of_damage": 0.1,
        "exact_channels": [3, 14],
    }
    assert [step["chosen"] for step in found["steps"]] == [False, False, True, False]
    assert (found["share_of_work"], found["problem"]) == (0.8, None)


def test_of_steps_that_came_out_alike_the_chosen_one_has_least_noise(run, made):
    steps = [{"what": "s", "share_of_work": 0.8, "noise": noise, "iou": 0.994} for noise in (0.3, 0.1, 0.1, 0.2)]
    _, said, _ = run(made({**FOUND, "steps": steps}), "--json")
    assert [step["chosen"] for step in json.loads(said)["int8"]["steps"]] == [False, True, False, False]


def test_another_precision_has_no_such_part(run, made):
    folder = made({}, precision="fp16")
    assert "\nINT8\n" not in run(folder)[1]
    assert json.loads(run(folder, "--json")[1])["int8"] is None


@pytest.mark.parametrize("missing", [("layers",), ("steps",), ("layers", "steps"), tuple(FOUND)])
def test_an_older_bundle_says_so_in_one_line(look, made, missing):
    said = look(made(without(*missing)))
    told = " and ".join(key for key in ("layers", "steps") if key in missing)
    assert f"layers      not shown: the bundle does not tell {told} of its search: compile it again" in said
    assert ("80.0 % of the layers' work\n" in said) == ("share_of_work" not in missing)


LAYER, STEP = FOUND["layers"][1], FOUND["steps"][0]


@pytest.mark.parametrize(
    "changed",
    [
        {"layers": 3},
        {"layers": ["conv1"]},
        {"layers": [{**LAYER, "name": []}]},
        {"layers": [{**LAYER, "share_of_work": 1.5}]},
        {"layers": [{**LAYER, "share_of_damage": "much"}]},
        {"layers": [{**LAYER, "share_of_damage": float("nan")}]},
        {"layers": [{"name": "conv1"}]},
        {"steps": {}},
        {"steps": [{**STEP, "noise": float("inf")}]},
        {"steps": [{**STEP, "iou": 10**400}]},
        {"steps": [{**STEP, "iou": True}]},
        {"exact_channels": {"up.conv": ["x"]}},
        {"exact_channels": []},
    ],
    ids=str,
)
def test_nonsense_in_the_manifest_is_told(run, look, made, tmp_path, changed):
    folder = made({**FOUND, **changed})
    assert "not shown: the manifest's list of layers or steps is damaged (expected " in look(folder)
    status, _, errors = run(folder, "--plot", tmp_path / "plot.png")
    assert status == 2
    assert re.fullmatch(r"error: --plot: expected layers .*, got none: .*damaged.*: compile .*\n", errors)


def test_names_that_give_orders_to_the_terminal_are_only_shown(look, made, tmp_path):
    orders = "\x1b]0;owned\x07\u202ebackwards"
    layers, steps = [{**LAYER, "name": orders}], [{**STEP, "what": orders}]
    found = {**FOUND, "layers": layers, "steps": steps, "exact_channels": {orders: [1]}}
    said = look(made(found, model=orders), "--plot", tmp_path / "plot.png")
    assert said.count("backwards") == 3
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", said)


# --- the plot


def drawn(folder):
    """The figure of a bundle: its axes for layers, for the table and for steps."""
    manifest = Bundle.read(folder).manifest
    figure = draw_search(manifest, read_search(manifest))
    assert png_bytes(figure).startswith(b"\x89PNG")
    return figure.axes


def bars(axes):
    """(name, length, colour) from top to bottom."""
    names = [label.get_text() for label in axes.get_yticklabels()]
    return [(name, bar.get_width(), to_hex(bar.get_facecolor())) for name, bar in zip(names, axes.patches, strict=True)]


def marks(axes):
    """Where the marks are, by what the legend calls them."""
    return {found.get_label(): found.get_offsets().tolist() for found in axes.collections}


def texts(axes):
    return [text.get_text() for text in axes.texts]


def rows(axes):
    (table,) = axes.tables
    cells = {place: cell.get_text().get_text() for place, cell in table.get_celld().items()}
    height, width = (max(place) + 1 for place in zip(*cells, strict=True))
    return [[cells[row, column] for column in range(width)] for row in range(1, height)]


def test_bars_are_as_long_as_the_damage_and_tell_the_precision(made):
    layers, _, _ = drawn(made())
    found = bars(layers)
    assert [(name, colour) for name, _, colour in found] == [
        ("middle.conv", ORANGE),
        ("down.conv", BLUE),
        ("up.conv", BLUE),
    ]
    assert [length for _, length, _ in found] == pytest.approx([70, 20, 10])
    assert texts(layers) == ["70.0 %", "20.0 %", "10.0 %"]
    assert "%" in layers.get_xlabel()


def test_the_chosen_step_and_the_verification_are_marked_where_they_are(made):
    _, table, steps = drawn(made())
    found = marks(steps)
    assert found["chosen"] == [pytest.approx([80, 0.994])]
    assert found["final verification"] == [pytest.approx([80, 0.991])]
    assert len(found["tried"]) == 3
    assert texts(steps) == ["1", "2", "3", "4"]
    assert rows(table)[2] == ["3", "3 layers in FP16 (chosen)", "80.00 %", "0.100", "0.9940"]
    assert rows(table)[-1][1:] == ["final verification, mean of 8 frames", "80.00 %", "", "0.9910"]


def test_without_a_verification_there_is_no_marker(made):
    for verification in ({}, {"iou_mean": "good"}, {"iou_mean": 7}):
        _, table, steps = drawn(made(verification=verification))
        assert "final verification" not in marks(steps)
        assert len(rows(table)) == 4


def test_twenty_five_bars_at_most(made):
    assert len(bars(drawn(made({**FOUND, "layers": many_layers(40)}))[0])) == 25


@pytest.mark.parametrize(
    "changed",
    [
        {"layers": [{**LAYER, "name": "", "share_of_damage": 0.0}]},
        {"layers": [{**LAYER, "name": "encoder." * 200, "share_of_damage": 1.0}]},
        {"layers": [{**LAYER, "name": "$\\frac{$ 層", "share_of_damage": 1.0}]},
        {"steps": [{**STEP, "what": "é" * 500, "share_of_work": 1.0, "iou": 1.0}] * 200},
        {"steps": [{**STEP, "share_of_work": 0.0, "iou": 0.0, "noise": 0}]},
    ],
    ids=["no name, no damage", "long name", "formula and other letters", "many steps", "nothing"],
)
def test_extremes_are_drawn(run, made, tmp_path, changed):
    path = tmp_path / "plot.png"
    assert run(made({**FOUND, **changed}), "--plot", path)[0] == 0
    image = cv2.imread(str(path))
    assert image.shape[1] == WIDTH_PX
    assert 600 < image.shape[0] < 0.875 * WIDTH_PX  # whole on a page, however many steps there are
    for edge in (image[:2], image[-2:], image[:, :2], image[:, -2:]):  # nothing is cut off
        assert edge.min() == 255


def test_a_plot_goes_with_the_report(run, made, tmp_path):
    path = tmp_path / "Plot.PNG"
    status, said, errors = run(made(), "--plot", path, "--json")
    assert (status, errors) == (0, "")
    assert json.loads(said)["int8"]["layers"]
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("calibration", "precision", "message"),
    [
        ({}, "fp16", r"expected a bundle in INT8, got one in fp16: compile one with --precision int8"),
        (
            without("layers", "steps"),
            "int8",
            r"got none: the bundle does not tell layers and steps .*: compile it again",
        ),
        ({**FOUND, "layers": []}, "int8", r"expected layers and steps .*, got empty lists: compile"),
        ({**FOUND, "steps": []}, "int8", r"expected layers and steps .*, got empty lists: compile"),
        ({**FOUND, "layers": [FOUND["layers"][0]]}, "int8", r"expected layers and steps .*, got empty lists: compile"),
    ],
)
def test_nothing_to_draw_is_refused_in_one_line(run, made, tmp_path, calibration, precision, message):
    path = tmp_path / "plot.png"
    status, said, errors = run(made(calibration, precision=precision), "--plot", path)
    assert (status, said) == (2, "")
    assert re.fullmatch(rf"error: --plot: .*{message}.*\n", errors)
    assert not path.exists()


def test_a_file_that_cannot_be_written_is_refused_in_one_line(run, made, tmp_path):
    folder = tmp_path / "folder.png"
    folder.mkdir()
    for path in (folder, tmp_path / "nothing" / "plot.png"):
        status, said, errors = run(made(), "--plot", path)
        assert (status, said) == (2, "")
        assert re.fullmatch(
            r"error: --plot .*: expected a file that can be written, .* \(.*\): choose another\n", errors
        )
    status, _, errors = run(made(), "--plot", tmp_path / "plot.jpg")
    assert status == 2
    assert "expected a file whose name ends in .png, got" in errors


# --- what must not be needed


def test_neither_torch_nor_onnxruntime_nor_opencv_nor_matplotlib_is_needed_for_the_text(cli, made, tmp_path):
    for name in ("torch", "onnxruntime", "cv2", "matplotlib"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('a Jetson has none')")
    path = os.pathsep.join((str(tmp_path), os.getcwd()))
    done = cli("compile.inspect", made(), env={"PYTHONPATH": path})
    assert (done.returncode, done.stderr) == (0, "")
    assert "in 2 of 5 layers" in done.stdout
    (tmp_path / "matplotlib.py").unlink()
    done = cli("compile.inspect", tmp_path / "bundle", "--plot", tmp_path / "plot.png", env={"PYTHONPATH": path})
    assert (done.returncode, done.stderr) == (0, "")


def test_without_matplotlib_a_plot_says_what_to_install(run, made, monkeypatch, tmp_path):
    for name in ("int8_plot", "figure"):
        monkeypatch.delitem(sys.modules, f"compile.inspect.{name}")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    status, _, errors = run(made(), "--plot", tmp_path / "plot.png")
    assert status == 2
    assert "matplotlib" in errors
    assert "pip install 'edgemask[plots]'" in errors
    assert not (tmp_path / "plot.png").exists()
