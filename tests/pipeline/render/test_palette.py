import json
from itertools import combinations

import cv2
import numpy as np
import pytest

from pipeline.errors import OptionError
from pipeline.render.palette import DEFAULT_PALETTE, PALETTES, Palette, load_palette
from pipeline.yaml_file import LIMIT_BYTES

# What a dichromat sees of linear red, green and blue (Viénot, Brettel and Mollon, 1999).
VIENOT = {
    "protanopia": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    "deuteranopia": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
}


def rgb(palette: Palette) -> list[list[int]]:
    return palette.colours_bgr[:, ::-1].tolist()


def palette_of(*rows: tuple[int, int, int], transparent_class_0: bool = True) -> Palette:
    return Palette(np.array(rows, np.uint8), transparent_class_0)


@pytest.mark.parametrize(("name", "count"), [("default", 8), ("cityscapes", 19), ("voc", 21)])
def test_built_in_palettes(name, count):
    palette = load_palette(name)
    assert name in PALETTES
    assert len(palette) == count
    assert len({tuple(row) for row in rgb(palette)}) == count


def test_known_colours_of_the_data_sets():
    voc, cityscapes = load_palette("voc"), load_palette("cityscapes")
    assert rgb(voc)[0] == [0, 0, 0]
    assert rgb(voc)[1] == [128, 0, 0]  # aeroplane
    assert rgb(voc)[8] == [64, 0, 0]  # cat
    assert rgb(voc)[15] == [192, 128, 128]  # person
    assert rgb(voc)[20] == [0, 64, 128]  # tv monitor
    assert rgb(cityscapes)[0] == [128, 64, 128]  # road
    assert rgb(cityscapes)[11] == [220, 20, 60]  # person
    assert rgb(cityscapes)[13] == [0, 0, 142]  # car
    assert voc.transparent_class_0
    assert not cityscapes.transparent_class_0


@pytest.mark.parametrize("eye", ["usual", "protanopia", "deuteranopia"])
def test_the_default_palette_stays_apart_for_colour_blind_people(eye):
    colours = np.array(rgb(DEFAULT_PALETTE)[1:]) / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    seen = linear @ np.array(VIENOT.get(eye, np.eye(3))).T
    seen = np.clip(seen, 0, 1)
    srgb = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
    lab = cv2.cvtColor(srgb.astype(np.float32)[np.newaxis], cv2.COLOR_RGB2Lab)[0]
    # A difference of 2.3 is just noticeable.
    assert min(float(np.linalg.norm(one - other)) for one, other in combinations(lab, 2)) > 10


def test_the_first_two_default_colours_are_not_the_background():
    assert DEFAULT_PALETTE.color(0) == (0, 0, 0)
    assert DEFAULT_PALETTE.color(1) == (233, 180, 86)
    assert DEFAULT_PALETTE.color(2) == (0, 159, 230)


@pytest.mark.parametrize("class_index", [0, 1, 2, 3, 4, 5, 255])
def test_colours_repeat_without_the_background(class_index):
    palette = palette_of((0, 0, 0), (1, 1, 1), (2, 2, 2))
    grey = 0 if class_index == 0 else (class_index - 1) % 2 + 1
    assert palette.color(class_index) == (grey, grey, grey)


@pytest.mark.parametrize(("class_index", "grey"), [(0, 5), (1, 6), (2, 7), (3, 5), (4, 6)])
def test_colours_repeat_from_class_0_where_it_is_a_class(class_index, grey):
    palette = palette_of((5, 5, 5), (6, 6, 6), (7, 7, 7), transparent_class_0=False)
    assert palette.color(class_index) == (grey, grey, grey)


def test_a_single_colour_serves_every_class():
    assert {palette_of((1, 2, 3)).color(index) for index in range(5)} == {(1, 2, 3)}


@pytest.mark.parametrize("name", PALETTES)
def test_the_table_holds_the_colour_of_every_index(name):
    palette = load_palette(name)
    table = palette.table_bgr()
    assert table.shape == (256, 1, 3)
    assert table.dtype == np.uint8
    assert [tuple(row) for row in table[:, 0].tolist()] == [palette.color(index) for index in range(256)]
    table[:] = 0
    assert palette.table_bgr().any()


def test_a_palette_keeps_its_own_colours():
    colours = np.full((2, 3), 9, np.uint8)
    palette = Palette(colours)
    colours[:] = 0
    assert palette.color(1) == (9, 9, 9)
    with pytest.raises(ValueError, match="read-only"):
        palette.colours_bgr[0] = 1


@pytest.mark.parametrize(
    ("colours", "got"),
    [
        (np.zeros((0, 3), np.uint8), r"\(0, 3\) uint8"),
        (np.zeros((257, 3), np.uint8), r"\(257, 3\) uint8"),
        (np.zeros((4, 4), np.uint8), r"\(4, 4\) uint8"),
        (np.zeros(3, np.uint8), r"\(3,\) uint8"),
        (np.zeros((4, 3)), r"\(4, 3\) float64"),
    ],
)
def test_wrong_arrays_are_refused(colours, got):
    with pytest.raises(OptionError, match=r"palette colors: expected \(N, 3\) uint8 with 1 to 256 rows, got " + got):
        Palette(colours)


# Spelled on the command line


def test_colours_on_the_command_line_begin_with_class_1():
    palette = load_palette("#ff0000, #00FF80")
    assert palette.color(1) == (0, 0, 255)
    assert palette.color(2) == (128, 255, 0)
    assert palette.color(3) == palette.color(1)


@pytest.mark.parametrize("spec", ["#ff00", "#gg0000", "#ff0000,", "#ff0000,red", "#ff0000ff", "#"])
def test_misspelled_colours_are_refused(spec):
    with pytest.raises(OptionError, match=r"palette .*: expected #rrggbb or \[r, g, b\] of 0 to 255, got"):
        load_palette(spec)


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("defualt", r": did you mean 'default'\?$"),
        ("CityScape", r": did you mean 'cityscapes'\?$"),
        ("zzz", r"#rrggbb\[,#rrggbb\.\.\.\]$"),
        ("", r"#rrggbb\[,#rrggbb\.\.\.\]$"),
    ],
)
def test_unknown_names_say_what_is_near(spec, hint):
    with pytest.raises(OptionError, match=rf"palette '{spec}': expected default, cityscapes, voc, a \.yaml.*{hint}"):
        load_palette(spec)


# Files


@pytest.mark.parametrize("name", ["colours.yaml", "colours.yml", "colours.json", "COLOURS.JSON"])
def test_files_hold_one_colour_a_class(tmp_path, name):
    path = tmp_path / name
    path.write_text(json.dumps([[0, 0, 0], [255, 128, 0], "#0000fF"]))
    palette = load_palette(str(path))
    assert rgb(palette) == [[0, 0, 0], [255, 128, 0], [0, 0, 255]]
    assert palette.color(1) == (0, 128, 255)


def test_a_yaml_list(tmp_path):
    path = tmp_path / "colours.yaml"
    path.write_text('# background first\n- [0, 0, 0]\n- "#102030"\n')
    assert rgb(load_palette(str(path))) == [[0, 0, 0], [16, 32, 48]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "- #ff0000",
            r'entry 0: expected #rrggbb.*got None \(in YAML, # begins a comment: write "#rrggbb" in quotes\)',
        ),
        ("[[0, 0, 256]]", r"entry 0: expected .*got \[0, 0, 256\]"),
        ("[[0, 0, -1]]", "entry 0"),
        ("[[0, 0]]", r"entry 0: .*got \[0, 0\]"),
        ("[[0, 0, 0], [true, 0, 0]]", r"entry 1: .*got \[True, 0, 0\]"),
        ("[[0.5, 0, 0]]", "entry 0"),
        ("['red']", "entry 0: .*got 'red'"),
        ("person: [1, 2, 3]", "expected a list of 1 to 256 colors, got dict"),
        ("[]", "expected a list of 1 to 256 colors, got a list of 0"),
        ("[" + "[0, 0, 0]," * 257 + "]", "got a list of 257"),
        ("", "got NoneType"),
        ("[1, 2", "expected YAML, got: while parsing a flow sequence"),
        ("[" * 30_000, "expected plain values and lists, got aliases or deep nesting"),
        ("!!python/object/apply:os.getcwd []", "expected YAML, got: could not determine a constructor"),
    ],
)
def test_wrong_yaml_is_refused(tmp_path, content, message):
    path = tmp_path / "colours.yaml"
    path.write_text(content)
    with pytest.raises(OptionError, match=rf"palette .*colours\.yaml.*{message}"):
        load_palette(str(path))


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\xfd", b"[" * 60_000])
def test_wrong_json_is_refused(tmp_path, content):
    path = tmp_path / "colours.json"
    path.write_bytes(content)
    with pytest.raises(OptionError, match=r"colours\.json: expected (YAML|plain values)"):
        load_palette(str(path))


def test_large_files_are_not_read(tmp_path):
    path = tmp_path / "colours.yaml"
    path.write_text("[[0, 0, 0]]" + " " * LIMIT_BYTES)
    with pytest.raises(OptionError, match=f"expected at most {LIMIT_BYTES} bytes, got more"):
        load_palette(str(path))


def test_missing_files_are_refused(tmp_path):
    (tmp_path / "folder.json").mkdir()
    for name in ("absent.yaml", "absent/colours.yaml"):
        with pytest.raises(OptionError, match=rf"palette .*{name}: cannot be read \(No such file or directory\)"):
            load_palette(str(tmp_path / name))
    with pytest.raises(OptionError, match=r"palette .*folder\.json: expected a file, got something else"):
        load_palette(str(tmp_path / "folder.json"))
    with pytest.raises(OptionError, match=r"cannot be read \(File name too long\)"):
        load_palette("a" * 300 + ".yaml")
