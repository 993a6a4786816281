import json
import math
from pathlib import Path

import pytest
import yaml

from compile.networks.contract import CONTRACTS, Contract, built_in_contract, read_contract
from compile.networks.families import FAMILIES
from pipeline.errors import CompileError
from pipeline.yaml_file import LIMIT_BYTES

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
BASE = Contract("stream", (320, 320), **IMAGENET)


@pytest.fixture
def read(tmp_path):
    def read(text, base=BASE):
        path = tmp_path / "mine.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_contract(path, base)

    return read


# --- built in


def test_every_checkpoint_family_has_both_contracts():
    assert CONTRACTS.keys() == {family.name for family in FAMILIES}
    for family, contracts in CONTRACTS.items():
        for name in ("stream", "official"):
            assert built_in_contract(family, name, 3) == contracts[name]
            assert contracts[name].name == name


@pytest.mark.parametrize("family", ["u2net-official", "u2net", "unet", "unet-base32"])
def test_on_a_stream_nothing_depends_on_the_extremes_of_one_frame(family):
    contract = built_in_contract(family, "stream", 3)
    assert (contract.divide_by, contract.stretch) == (255.0, False)


def test_numbers_of_the_families():
    official = built_in_contract("u2net-official", "official", 3)
    assert (official.divide_by, official.stretch, official.imgsz) == ("max", True, (320, 320))
    assert (official.mean, official.std) == (IMAGENET["mean"], IMAGENET["std"])
    again = built_in_contract("u2net", "official", 3)
    assert (again.divide_by, again.stretch, again.mean, again.std) == (255.0, False, *IMAGENET.values())
    plain = built_in_contract("unet", "official", 3)
    assert (plain.divide_by, plain.mean, plain.std) == (255.0, (0, 0, 0), (1, 1, 1))
    drive = built_in_contract("unet-base32", "official", 3)
    assert (drive.mean, drive.std) == ((0.709, 0.381, 0.224), (0.127, 0.079, 0.043))
    assert {contract.channels for contracts in CONTRACTS.values() for contract in contracts.values()} == {"rgb"}
    assert {contract.activation for contracts in CONTRACTS.values() for contract in contracts.values()} == {"sigmoid"}


def test_one_channel_gets_grey():
    contract = built_in_contract("u2net", "official", 1)
    assert contract.channels == "grey"
    assert contract.mean == pytest.approx((0.449,))
    assert contract.std == pytest.approx((0.226,))


@pytest.mark.parametrize("n_channels", [2, 4])
def test_other_numbers_of_channels_are_those_of_files(n_channels):
    contract = built_in_contract("u2net", "stream", n_channels)
    assert (contract.channels, contract.mean, contract.std) == (n_channels, (0.0,) * n_channels, (1.0,) * n_channels)
    with pytest.raises(CompileError, match="expected 1 to 16 input channels, got 17"):
        built_in_contract("unet", "stream", 17)


def test_unknown_name_is_refused():
    with pytest.raises(CompileError, match=r"expected stream, official or a YAML file, got 'strem': no such file"):
        built_in_contract("unet", "strem", 3)


# --- files


def test_a_file_says_only_what_differs(read):
    contract = read("imgsz: 512\nchannels: bgr\n")
    assert contract == Contract("mine", (512, 512), channels="bgr", **IMAGENET)


def test_every_key_of_a_file(read):
    contract = read(
        """
        name: roads
        imgsz: [256, 512]
        channels: bgr
        divide_by: max
        mean: [1, 0.5, 0]
        std: [1, 2, 0.5]
        activation: softmax
        stretch: false
        classes: [background, road, 3]
        output: scores
        layout: nhwc
        """,
        base=None,
    )
    assert contract == Contract(
        "roads",
        (256, 512),
        channels="bgr",
        divide_by="max",
        mean=(1.0, 0.5, 0.0),
        std=(1.0, 2.0, 0.5),
        activation="softmax",
        classes=("background", "road", "3"),
        output="scores",
        layout="nhwc",
    )


def test_without_a_base_only_the_size_is_needed(read):
    assert read("imgsz: [64, 32]", base=None) == Contract("mine", (64, 32))
    with pytest.raises(CompileError, match=r"mine\.yaml: expected imgsz: \[height, width\], got none"):
        read("channels: bgr", base=None)


@pytest.mark.parametrize("contracts", CONTRACTS.values(), ids=CONTRACTS)
def test_what_the_manifest_shows_can_be_given_as_a_file(read, contracts):
    for contract in contracts.values():
        text = json.dumps(contract.as_dict(), allow_nan=False)
        assert read(text) == contract
        assert read(yaml.safe_dump(json.loads(text))) == contract


def test_grey_over_a_base_of_colours_starts_without_mean(read):
    contract = read("channels: grey")
    assert (contract.mean, contract.std) == ((0.0,), (1.0,))
    assert read("channels: grey\nmean: [0.4]\nstd: [0.2]").mean == (0.4,)


def test_grey_over_a_grey_base_keeps_its_mean(read):
    base = built_in_contract("u2net", "stream", 1)
    contract = read("channels: grey", base)
    assert (contract.mean, contract.std) == (base.mean, base.std)


def test_colours_over_a_grey_base_start_without_mean(read):
    assert read("channels: rgb", built_in_contract("u2net", "stream", 1)).mean == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("meen: [0, 0, 0]", r"unknown key 'meen': did you mean 'mean'\?"),
        ("divideby: 255", r"unknown key 'divideby': did you mean 'divide_by'\?"),
        ("zzz: 1", r"unknown key 'zzz': there are name, imgsz, channels"),
        ("~: 1", "unknown key None: there are name"),
        ("mean: [0, 0]", r"mean: expected 3 numbers for rgb, got \(0\.0, 0\.0\)"),
        ("mean: 0.5", "mean: expected a list of numbers, one for each channel, got 0.5"),
        ("mean: '123'", "mean: expected a list of numbers, one for each channel, got '123'"),
        ("mean: [a, b, c]", "mean: expected a list of numbers, one for each channel"),
        ("mean: [true, false, true]", "mean: expected a list of numbers, one for each channel"),
        ("mean: [.nan, 0, 0]", r"mean: expected 3 numbers for rgb, got \(nan"),
        ("mean:", "mean: expected a list of numbers, one for each channel, got None"),
        ("std: [1, 1, 0]", "std: expected 3 numbers above 0 for rgb"),
        ("std: [1, 1, -1]", "std: expected 3 numbers above 0 for rgb"),
        ("std: [1, 1, .inf]", "std: expected 3 numbers above 0 for rgb"),
        ("std: [1, 1, 1, 1]", "std: expected 3 numbers above 0 for rgb"),
        ("channels: grey\nmean: [0, 0, 0]", "mean: expected 1 number for grey"),
        ("channels: rbg", "channels: expected rgb, bgr, grey or a number from 1 to 16, got 'rbg'"),
        ("channels: [rgb]", "channels: expected rgb, bgr, grey or a number"),
        ("divide_by: 0", "divide_by: expected max or a number above 0, got 0"),
        ("divide_by: -255", "divide_by: expected max or a number above 0, got -255"),
        ("divide_by: .inf", "divide_by: expected max or a number above 0, got inf"),
        ("divide_by: .nan", "divide_by: expected max or a number above 0, got nan"),
        ("divide_by: '255'", "divide_by: expected max or a number above 0, got '255'"),
        ("divide_by: true", "divide_by: expected max or a number above 0, got True"),
        ("divide_by: 0x" + "f" * 999, "divide_by: expected max or a number above 0"),
        ("imgsz: [1, 2, 3]", r"imgsz: expected a whole number or \[height, width\], got \[1, 2, 3\]"),
        ("imgsz: 320.5", r"imgsz: expected a whole number or \[height, width\], got 320\.5"),
        ("imgsz: .inf", r"imgsz: expected a whole number or \[height, width\], got inf"),
        ("imgsz: true", r"imgsz: expected a whole number or \[height, width\], got True"),
        ("imgsz: 320x640", r"imgsz: expected a whole number or \[height, width\], got '320x640'"),
        ("imgsz: 0", "imgsz: expected height and width from 1 to 8192"),
        ("imgsz: [8193, 64]", "imgsz: expected height and width from 1 to 8192"),
        ("activation: relu", "activation: expected sigmoid, softmax or none, got 'relu'"),
        ("stretch: 1", "stretch: expected true or false, got 1"),
        ("layout: NCHW", "layout: expected nchw or nhwc, got 'NCHW'"),
        ("output: 3", "output: expected a name, got 3"),
        ("name: [a]", r"name: expected a name, got \['a'\]"),
        ("classes: road", "classes: expected a list of names, in quotes .* got 'road'"),
        ("classes: []", "classes: expected a list of names"),
        ("classes: [yes, no]", "classes: expected a list of names, in quotes .*, got .True, False."),
    ],
)
def test_wrong_entries_are_refused_with_what_is_expected(read, line, message):
    with pytest.raises(CompileError, match=message):
        read(line)


@pytest.mark.parametrize(
    "text",
    [
        '!!python/object/apply:os.mkdir ["{made}"]',
        'name: !!python/object/apply:os.mkdir ["{made}"]',
        '!!python/object/new:os.mkdir ["{made}"]',
        "name: !!python/name:os.system",
    ],
)
def test_a_file_cannot_run_code(read, tmp_path, text):
    made = tmp_path / "made"
    with pytest.raises(CompileError, match="expected YAML, got: could not determine a constructor"):
        read(text.replace("{made}", str(made)))
    assert not made.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected 'key: value' lines, got nothing"),
        ("hello", "expected 'key: value' lines, got str"),
        ("- imgsz", "expected 'key: value' lines, got list"),
        (b"\x00\x01", "expected YAML, got: unacceptable character"),
        (b"\xff\xfe\xfd", "expected YAML, got: "),
        ("imgsz: [1", "expected YAML, got: while parsing a flow sequence"),
        ("? [1, 2]\n: 3", "expected YAML, got: while constructing a mapping"),
        ("imgsz: 1\n---\nimgsz: 2", "expected YAML, got: expected a single document"),
        ("name: 2001-99-99", "expected YAML, got: month must be"),
        ("imgsz: " + "9" * 5000, "expected YAML, got: Exceeds the limit"),
        ("name: !!bool maybe", "expected YAML, got: 'maybe'"),
    ],
)
def test_what_is_no_contract_is_refused_in_one_line(read, text, message):
    with pytest.raises(CompileError, match=message) as caught:
        read(text)
    assert "\n" not in str(caught.value)


def _laughs(levels):
    lines = ["a0: &a0 [ha, ha]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, levels)]
    return "\n".join([*lines, f"classes: *a{levels - 1}"])


def _merges(levels):
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 9)}]}}" for level in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [_laughs(20), _merges(20), "classes: &a [*a]", "[" * 30_000, "classes: " + "[" * 999 + "]" * 999, "- " * 30_000],
    ids=["billion laughs", "merges", "itself", "deep and open", "deep", "deep block"],
)
def test_a_few_lines_cannot_take_all_memory(read, text):
    with pytest.raises(CompileError, match="expected plain values and lists, got aliases or deep nesting"):
        read(text)


def test_file_size_is_limited(read, tmp_path):
    size = LIMIT_BYTES - len("imgsz: 64\n# ")
    assert read("imgsz: 64\n# " + "x" * size).imgsz == (64, 64)
    with pytest.raises(CompileError, match=f"expected at most {LIMIT_BYTES} bytes, got more"):
        read("imgsz: 64\n# " + "x" * (size + 1))


def test_an_endless_file_is_not_read_to_its_end():
    endless = Path("/dev/zero")
    if not endless.exists():
        pytest.skip("no /dev/zero here")
    with pytest.raises(CompileError, match="expected a file, got something else"):
        read_contract(endless)


def test_missing_files_and_folders_are_told(tmp_path):
    with pytest.raises(CompileError, match=r"none\.yaml: cannot be read \(No such file or directory\)"):
        read_contract(tmp_path / "none.yaml")
    with pytest.raises(CompileError, match="expected a file, got something else"):
        read_contract(tmp_path)


def test_no_contract_has_a_number_that_json_lacks():
    with pytest.raises(CompileError, match="mean"):
        Contract("x", (8, 8), mean=(math.nan, 0.0, 0.0))


def test_the_contract_of_a_bundle_is_read_again():
    for contract in (BASE, built_in_contract("u2net", "official", 1), Contract("x", (8, 9), classes=("a", "b"))):
        assert Contract.from_dict(json.loads(json.dumps(contract.as_dict()))) == contract
    with pytest.raises(CompileError, match="missing or unknown 'imgsz'"):
        Contract.from_dict({"name": "x"})
    with pytest.raises(CompileError, match="missing or unknown 'colour'"):
        Contract.from_dict({"name": "x", "imgsz": [8, 8], "colour": 1})
