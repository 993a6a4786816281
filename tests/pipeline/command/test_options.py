import subprocess
import sys
from operator import attrgetter

import pytest

from pipeline.audit.rate import Rate
from pipeline.command.options import parse_options
from pipeline.command.run_options import LookOptions, MaskOptions, ModelOptions, OutputOptions, RunOptions
from pipeline.errors import OptionError
from pipeline.page.options import Limits, PageOptions
from pipeline.results.zone_options import Zone, ZoneOptions
from pipeline.sinks.options import SinkOptions
from pipeline.sources.options import LiveOptions
from pipeline.yaml_file import LIMIT_BYTES
from tests.conftest import ROOT


@pytest.fixture
def config(tmp_path):
    """``config("hud: true")``: the options that a file with this text gives."""

    def parse(text, *arguments):
        path = tmp_path / "c.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return parse_options(["--config", str(path), *arguments])

    return parse


def test_defaults():
    options = parse_options(["--source", "0"])
    assert options == RunOptions(("0",))
    assert (options.model.name, options.model.backend, options.model.may_build) == ("u2netp", "auto", True)
    assert (options.masks.smooth, options.live.stall_s, options.live.reconnect_s) == ("auto", 3.0, 5.0)
    assert (options.look.mode, options.look.alpha, options.look.threshold) == ("overlay", 0.5, 0.5)
    assert (options.outputs.names, options.outputs.save, options.page) == ((), None, None)
    assert (options.drop_oldest, options.max_frames) == (None, None)


def test_the_command_line_alone():
    options = parse_options(
        ["-s", "a.mp4", "-o", "b.mp4", "-o", "c/", "--alpha", "0.25", "--max-frames=7", "--hud", "-q"]
    )
    assert options.outputs.names == ("b.mp4", "c/")
    assert (options.look.alpha, options.max_frames, options.look.hud, options.quiet) == (0.25, 7, True, True)


@pytest.mark.parametrize(
    ("arguments", "sources"),
    [
        (["a.png"], ("a.png",)),
        (["a.png", "b.png", "--output", "out/"], ("a.png", "b.png")),
        (["--output", "out/", "a.png"], ("a.png",)),
        (["a.png", "--output", "out/", "b.png", "--hud", "c.png"], ("a.png", "b.png", "c.png")),
        (["a.png", "--source", "0", "b.png"], ("0", "a.png", "b.png")),
    ],
)
def test_a_source_may_stand_alone(arguments, sources):
    assert parse_options(arguments).sources == sources


@pytest.mark.parametrize(("drop", "drop_oldest"), [("auto", None), ("latest", True), ("never", False)])
def test_which_frames_are_dropped(drop, drop_oldest):
    assert parse_options(["0", "--drop", drop]).drop_oldest is drop_oldest


def test_every_option_arrives():
    words = "0 --model m --backend onnxruntime --rebuild never --no-tune --smooth strong --fps 5 --refine-edges --compose host "
    words += "--render mask "
    words += "--alpha 0.1 --threshold 0.2 --palette voc --background #000000 --legend --hud --output a --save b --show --headless "
    words += "--encoder x264 --segment-time 1m --segment-size 2 --keep-files 3 --keep-size 4 --min-free 5 --stall 1 --reconnect 2 "
    words += "--max-reconnects 3 --on-corrupt pass --tls-verify no --follow-redirects "
    words += "--serve h:1 --serve-token t --serve-name n --serve-read-only --serve-viewers 2 "
    words += "--results rle,yolo --labels png --zone-above z=0.5 --zone-enter 0.2 --zone-dwell 3 --audit 1/10 "
    options = parse_options(
        [*words.split(), *["--zone", "z=0,0 1,0 1,1", "--drop", "latest", "--max-frames", "4", "--quiet"]]
    )
    assert options == RunOptions(
        ("0",),
        ModelOptions("m", "onnxruntime", may_build=False, may_tune=False),
        MaskOptions("strong", 5.0, True, "host"),
        LookOptions("mask", 0.1, 0.2, "voc", "#000000", legend=True, hud=True),
        OutputOptions(("a",), "b", show=True, headless=True),
        SinkOptions(
            results=("rle", "yolo"),
            labels="png",
            encoder="x264",
            segment_s=60,
            segment_bytes=2,
            keep_segments=3,
            keep_bytes=4,
            min_free_bytes=5,
        ),
        ZoneOptions((Zone("z", ((0, 0), (1, 0), (1, 1)), 0.5),), 0.2, 3),
        LiveOptions(1, 2, max_reconnects=3, on_corrupt="pass", tls_verify="no", follow_redirects=True),
        PageOptions("h:1", "t", ("n",), read_only=True, limits=Limits(viewers=2)),
        audit=Rate(frames=10),
        drop_oldest=True,
        max_frames=4,
        quiet=True,
    )


@pytest.mark.parametrize(
    ("arguments", "saved"),
    [([], None), (["--save"], ""), (["--save", "a.mp4"], "a.mp4"), (["--save=-a.mp4"], "-a.mp4")],
)
def test_save_with_and_without_a_path(arguments, saved):
    assert parse_options(["--source", "0", *arguments]).outputs.save == saved


def test_help_names_every_option_and_its_default(capsys):
    with pytest.raises(SystemExit) as left:
        parse_options(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert left.value.code == 0
    assert "(default: u2netp)" in text
    assert "(default: overlay)" in text
    assert "130 interrupted" in text
    assert "SUPPRESS" not in text
    assert "None" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected a source: a camera"),
        (["--sauce", "0"], "unrecognized arguments: --sauce: did you mean '--source'?"),
        (["0", "--outptu", "a.mp4"], "did you mean '--output'?"),
        (["0", "--max_frames=3"], "did you mean '--max-frames'?"),
        (["0", "--zzzzzzzz"], "unrecognized arguments: --zzzzzzzz (see"),
        (["--source"], "expected one argument"),
        (["--source", "0", "--alpha", "1.5"], "--alpha: expected a number from 0 to 1, got 1.5"),
        (["--source", "0", "--alpha", "x"], "--alpha: expected a number from 0 to 1, got x"),
        (["--source", "0", "--threshold", "nan"], "--threshold: expected a number from 0 to 1, got nan"),
        (["--source", "0", "--threshold=-0.1"], "--threshold: expected a number from 0 to 1, got -0.1"),
        (["--source", "0", "--max-frames", "0"], "--max-frames: expected a whole number from 1, got 0"),
        (["--source", "0", "--max-frames", "ten"], "--max-frames: expected a whole number from 1, got ten"),
        (["--source", "0", "--render", "glow"], "invalid choice: 'glow'"),
        (["--source", "0", "--backend", "gpu"], "invalid choice: 'gpu' (choose from auto, "),
        (["--source", "0", "--drop", "all"], "invalid choice: 'all'"),
        (["0", "--backend", "onnx"], "did you mean 'onnxruntime'?"),
        (["0", "--render", "mesk"], "invalid choice: 'mesk': did you mean 'mask'?"),
    ],
)
def test_a_wrong_option_is_one_sentence(arguments, message):
    with pytest.raises(OptionError, match=r"\(see python -m pipeline --help\)$") as caught:
        parse_options(arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_gives_what_the_command_line_does_not(config):
    text = "source: a.mp4\nalpha: 0.25\nhud: true\nrender: contour\nmax_frames: 5\n"
    options = config(text, "--render", "mask")
    assert (options.sources, options.look.alpha, options.look.hud, options.max_frames) == (("a.mp4",), 0.25, True, 5)
    assert options.look.mode == "mask"


def test_the_command_line_wins_even_with_the_default(config):
    options = config("source: a.mp4\nalpha: 0.25\nmodel: x\noutput: [a, b]", "--alpha", "0.5", "--output", "c")
    assert (options.look.alpha, options.model.name, options.outputs.names) == (0.5, "x", ("c",))


def test_the_order_of_config_does_not_matter(config, tmp_path):
    config("source: a.mp4\nalpha: 0.25")
    assert parse_options(["--alpha", "0.75", "--config", str(tmp_path / "c.yaml")]).look.alpha == 0.75


def test_long_names_with_hyphen_or_underscore(config):
    assert config("source: 0\nmax-frames: 3").max_frames == 3
    assert config("source: 0\nmax_frames: 3").max_frames == 3
    assert config("source: 0\nno_display: true").outputs.headless is True


@pytest.mark.parametrize(
    ("text", "expected"), [("true", True), ("yes", True), ("on", True), ("false", False), ("no", False)]
)
def test_switches(config, text, expected):
    assert config(f"source: 0\nhud: {text}").look.hud is expected


def test_save_is_a_switch_or_a_value(config):
    assert config("source: 0\nsave: true").outputs.save == ""
    assert config("source: 0\nsave: false").outputs.save is None
    assert config("source: 0\nsave: a.mp4").outputs.save == "a.mp4"


def test_lists_are_for_what_may_be_repeated(config):
    assert config("source: 0\noutput: [a.mp4, b/]").outputs.names == ("a.mp4", "b/")
    assert config("source: 0\noutput: a.mp4").outputs.names == ("a.mp4",)
    assert config("source: 0\noutput: []").outputs.names == ()
    assert config("source: [rtsp://a/1, 0]").sources == ("rtsp://a/1", "0")
    with pytest.raises(OptionError, match="model: expected one value, got a list"):
        config("source: 0\nmodel: [a, b]")


def test_a_source_of_the_command_line_replaces_those_of_the_file(config):
    assert config("source: [a.mp4, b.mp4]", "--source", "c.mp4").sources == ("c.mp4",)
    assert config("source: [a.mp4, b.mp4]", "c.mp4").sources == ("c.mp4",)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("stall: 500ms", None, None),
        ("stall: 2m", "live.stall_s", 120.0),
        ("segment-time: 1h", "recording.segment_s", 3600.0),
        ("segment-size: 500M", "recording.segment_bytes", 500_000_000),
        ("min-free: 0", "recording.min_free_bytes", 0),
        ("max-reconnects: 0", "live.max_reconnects", 0),
        ("keep-files: 0", None, None),
        ("max-reconnects: -1", None, None),
        ("segment-time: soon", None, None),
        ("segment-size: -1", None, None),
        ("serve: true", "page.address", "127.0.0.1:8080"),
        ("serve: 0.0.0.0:9000", "page.address", "0.0.0.0:9000"),
        ("serve: 8099", "page.address", "8099"),
        ("serve: true\nserve-name: [a, b]", "page.names", ("a", "b")),
    ],
)
def test_times_sizes_and_the_page(config, text, name, value):
    if name is None:
        with pytest.raises(OptionError, match=text.split(":")[0]):
            config(f"source: 0\n{text}")
    else:
        assert attrgetter(name)(config(f"source: 0\n{text}")) == value


def test_numbers_dates_and_nothing(config):
    assert config("source: 0").sources == ("0",)
    assert config("source: 2026-01-02").sources == ("2026-01-02",)
    assert config("source: 0\nmodel: null\nmax-frames: ~").max_frames is None


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("smooth: off", "masks.smooth", "off"),
        ("smooth: on", "masks.smooth", "on"),
        ("render: mask\nhud: on", "look.hud", True),
        ("hud: no", "look.hud", False),
        ("output: yes", "outputs.names", ("yes",)),
        ("output: 10:30", "outputs.names", ("10:30",)),
        ("output: 0x10", "outputs.names", ("0x10",)),
        ("output: 1_000", "outputs.names", ("1_000",)),
        ("background: '#ff0000'\r\nhud: true\r\n", "look.background", "#ff0000"),
        ("\ufeffhud: true", "look.hud", True),
        ("output: ~/out.mp4", "outputs.names", ("/home/me/out.mp4",)),
        ("background: ~/back.png", "look.background", "/home/me/back.png"),
    ],
)
def test_a_value_is_what_is_spelled(config, monkeypatch, text, name, value):
    monkeypatch.setenv("HOME", "/home/me")
    text, mark = text.removeprefix("\ufeff"), text[:1] if text[:1] == "\ufeff" else ""
    assert attrgetter(name)(config(f"{mark}source: 0\n{text}")) == value


def test_a_value_that_begins_like_an_option(config):
    assert config("source: -a.mp4\noutput: ['--b.mp4']").outputs.names == ("--b.mp4",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sauce: 0", "unknown key 'sauce': did you mean 'source'"),
        ("source: 0\nmax_frame: 0", "unknown key 'max_frame': did you mean 'max-frames'"),
        ("zzzzzz: 0", "unknown key 'zzzzzz': there are source, model"),
        ("config: other.yaml", "unknown key 'config'"),
        ("help: true", "unknown key 'help'"),
        ("s: 0", "unknown key 's'"),
        ("0: 1", "unknown key '0'"),
        ("source: 0\nbackground: #ff0000", "background: expected a value, got none: after # all is a comment"),
        ("source: 0\nmodel:", 'model: "'),
        ("source: !!bool true", "source: expected a value or a list of values, got something nested"),
        ("source: {a: b}", "source: expected a value or a list of values, got something nested"),
        ("output: [[a]]", "output: expected a value or a list of values, got something nested"),
        ("output: [!!bool true]", "output: expected a value or a list of values, got something nested"),
        ("output: [a, ~]", "output: expected a value or a list of values, got something nested"),
        ("source: 0\nhud: maybe", "hud: expected true or false, got 'maybe'"),
        ("source: 0\nalpha: 2", "--alpha: expected a number from 0 to 1, got 2"),
        ("source: 0\nrender: glow", "invalid choice: 'glow'"),
        ("just words", "expected options as 'name: value', got str"),
        ("- source: 0", "got list"),
        ("", "got NoneType"),
        ("source: [", "expected YAML, got: while parsing"),
        ("source: 'a", "expected YAML, got: while scanning"),
        ("\tsource: 0", "expected YAML"),
        (b"source: \xff\xfe", "expected YAML"),
        ("source: !!bool x", "expected YAML"),
        ("source: !!timestamp x", "expected YAML"),
        ("source: !!int ''", "expected YAML"),
        ("source: " + "[" * 20_000, "expected plain values and lists, got aliases or deep nesting"),
        ("source: !!python/object/apply:os.system ['touch hacked']", "could not determine a constructor"),
        ("!!python/object/new:subprocess.Popen [touch]", "could not determine a constructor"),
    ],
)
def test_a_wrong_file_is_one_sentence_that_names_it(config, tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match=r"^--config .*c\.yaml: ") as caught:
        config(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "hacked").exists()


def test_aliases_of_aliases_do_not_fill_the_memory(config):
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(OptionError, match="expected plain values and lists, got aliases or deep nesting"):
        config("\n".join(levels))


def test_a_large_file_is_not_read(config):
    assert config(b"source: 0\n#".ljust(LIMIT_BYTES)).sources == ("0",)
    with pytest.raises(OptionError, match=f"expected at most {LIMIT_BYTES} bytes, got more"):
        config(b"source: 0\n#".ljust(LIMIT_BYTES + 1))


def test_a_file_without_end_is_not_read():
    with pytest.raises(OptionError, match="/dev/zero: expected a file, got something else"):
        parse_options(["--config", "/dev/zero"])


def test_no_such_file():
    with pytest.raises(OptionError, match=r"^--config nowhere.yaml: cannot be read \(No such file or directory\)$"):
        parse_options(["--config", "nowhere.yaml"])


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(OptionError, match=r"expected a file, got something else$"):
        parse_options(["--config", str(tmp_path)])


@pytest.mark.parametrize("value", ["yes", "no", "/etc/ca.pem"])
def test_yes_and_no_of_a_file_stay_words_where_words_are_expected(config, value):
    live = config(f"source: '0'\ntls-verify: {value}\nfollow-redirects: no").live
    assert (live.tls_verify, live.follow_redirects) == (value, False)


def test_names_of_sources_stay_with_them(config):
    in_file = config("source: ['front door=rtsp://u:p=w@cam/a?b=c', yard=/dev/video0]\n").sources
    assert in_file == ("front door=rtsp://u:p=w@cam/a?b=c", "yard=/dev/video0")
    assert parse_options(["--source", "door=rtsp://cam/a?b=c", "gate=0"]).sources == ("door=rtsp://cam/a?b=c", "gate=0")


def test_options_that_are_right_are_read_without_what_only_wrong_ones_and_few_runs_need():
    """All that is imported here comes before the engine can begin."""
    ask = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pipeline.command.options import parse_options; "
        "parse_options(['a.mp4', '--alpha', '0.4', '--output', 'b.mp4']); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout.split()
    assert "pipeline.command.options" in loaded
    unneeded = {"difflib", "hashlib", "numpy", "secrets", "shutil", "socket", "subprocess", "tempfile"}
    assert not unneeded & set(loaded)
