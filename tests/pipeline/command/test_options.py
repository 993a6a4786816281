import pytest

from pipeline.command.options import parse_options
from pipeline.errors import OptionError
from pipeline.yaml_file import LIMIT_BYTES


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
    assert (options.source, options.model, options.output, options.backend) == (["0"], "u2netp", None, "auto")
    assert (options.smooth, options.stall, options.reconnect, options.serve) == ("auto", 3.0, 5.0, None)
    assert (options.render, options.alpha, options.threshold, options.palette) == ("overlay", 0.5, 0.5, "default")
    assert (options.drop, options.max_frames, options.save, options.background) == ("auto", None, None, None)
    assert not any((options.show, options.headless, options.legend, options.hud, options.quiet))


def test_the_command_line_alone():
    options = parse_options(
        ["-s", "a.mp4", "-o", "b.mp4", "-o", "c/", "--alpha", "0.25", "--max-frames=7", "--hud", "-q"]
    )
    assert options.output == ["b.mp4", "c/"]
    assert (options.alpha, options.max_frames, options.hud, options.quiet) == (0.25, 7, True, True)


@pytest.mark.parametrize(
    ("arguments", "saved"),
    [([], None), (["--save"], ""), (["--save", "a.mp4"], "a.mp4"), (["--save=-a.mp4"], "-a.mp4")],
)
def test_save_with_and_without_a_path(arguments, saved):
    assert parse_options(["--source", "0", *arguments]).save == saved


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
        ([], "expected --source: a camera"),
        (["--sauce", "0"], "--sauce"),
        (["--source"], "expected one argument"),
        (["--source", "0", "--alpha", "1.5"], "--alpha: expected a number from 0 to 1, got 1.5"),
        (["--source", "0", "--alpha", "x"], "--alpha: expected a number from 0 to 1, got x"),
        (["--source", "0", "--threshold", "nan"], "--threshold: expected a number from 0 to 1, got nan"),
        (["--source", "0", "--threshold=-0.1"], "--threshold: expected a number from 0 to 1, got -0.1"),
        (["--source", "0", "--max-frames", "0"], "--max-frames: expected a whole number from 1, got 0"),
        (["--source", "0", "--max-frames", "ten"], "--max-frames: expected a whole number from 1, got ten"),
        (["--source", "0", "--render", "glow"], "invalid choice: 'glow'"),
        (["--source", "0", "--backend", "gpu"], "invalid choice: 'gpu'"),
        (["--source", "0", "--drop", "all"], "invalid choice: 'all'"),
        (["--source", "0", "extra"], "unrecognized arguments: extra"),
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
    assert (options.source, options.alpha, options.hud, options.max_frames) == (["a.mp4"], 0.25, True, 5)
    assert options.render == "mask"


def test_the_command_line_wins_even_with_the_default(config):
    options = config("source: a.mp4\nalpha: 0.25\nmodel: x\noutput: [a, b]", "--alpha", "0.5", "--output", "c")
    assert (options.alpha, options.model, options.output) == (0.5, "x", ["c"])


def test_the_order_of_config_does_not_matter(config, tmp_path):
    config("source: a.mp4\nalpha: 0.25")
    assert parse_options(["--alpha", "0.75", "--config", str(tmp_path / "c.yaml")]).alpha == 0.75


def test_long_names_with_hyphen_or_underscore(config):
    assert config("source: 0\nmax-frames: 3").max_frames == 3
    assert config("source: 0\nmax_frames: 3").max_frames == 3
    assert config("source: 0\nno_display: true").headless is True


@pytest.mark.parametrize(
    ("text", "expected"), [("true", True), ("yes", True), ("on", True), ("false", False), ("no", False)]
)
def test_switches(config, text, expected):
    assert config(f"source: 0\nhud: {text}").hud is expected


def test_save_is_a_switch_or_a_value(config):
    assert config("source: 0\nsave: true").save == ""
    assert config("source: 0\nsave: false").save is None
    assert config("source: 0\nsave: a.mp4").save == "a.mp4"


def test_lists_are_for_what_may_be_repeated(config):
    assert config("source: 0\noutput: [a.mp4, b/]").output == ["a.mp4", "b/"]
    assert config("source: 0\noutput: a.mp4").output == ["a.mp4"]
    assert config("source: 0\noutput: []").output is None
    assert config("source: [rtsp://a/1, 0]").source == ["rtsp://a/1", "0"]
    with pytest.raises(OptionError, match="model: expected one value, got a list"):
        config("source: 0\nmodel: [a, b]")


def test_a_source_of_the_command_line_replaces_those_of_the_file(config):
    assert config("source: [a.mp4, b.mp4]", "--source", "c.mp4").source == ["c.mp4"]


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("stall: 500ms", None, None),
        ("stall: 2m", "stall", 120.0),
        ("segment-time: 1h", "segment_time", 3600.0),
        ("segment-size: 500M", "segment_size", 500_000_000),
        ("min-free: 0", "min_free", 0),
        ("max-reconnects: 0", "max_reconnects", 0),
        ("keep-files: 0", None, None),
        ("max-reconnects: -1", None, None),
        ("segment-time: soon", None, None),
        ("segment-size: -1", None, None),
        ("serve: true", "serve", "127.0.0.1:8080"),
        ("serve: 0.0.0.0:9000", "serve", "0.0.0.0:9000"),
        ("serve-name: [a, b]", "serve_name", ["a", "b"]),
    ],
)
def test_times_sizes_and_the_page(config, text, name, value):
    if name is None:
        with pytest.raises(OptionError, match=text.split(":")[0]):
            config(f"source: 0\n{text}")
    else:
        assert getattr(config(f"source: 0\n{text}"), name) == value


def test_numbers_dates_and_nothing(config):
    assert config("source: 0").source == ["0"]
    assert config("source: 2026-01-02").source == ["2026-01-02"]
    assert config("source: 0\nmodel:\nmax-frames: ~").max_frames is None


def test_a_value_that_begins_like_an_option(config):
    assert config("source: -a.mp4\noutput: ['--b.mp4']").output == ["--b.mp4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sauce: 0", "unknown key 'sauce': did you mean 'source'"),
        ("source: 0\nmax_frame: 0", "unknown key 'max_frame': did you mean 'max-frames'"),
        ("zzzzzz: 0", "unknown key 'zzzzzz': there are source, model"),
        ("config: other.yaml", "unknown key 'config'"),
        ("help: true", "unknown key 'help'"),
        ("s: 0", "unknown key 's'"),
        ("0: 1", "unknown key 0"),
        ("source: true", "source: expected a value, got true"),
        ("source: {a: b}", "source: expected a value or a list of values, got something nested"),
        ("output: [[a]]", "output: expected a value or a list of values, got something nested"),
        ("output: [true]", "output: expected a value or a list of values, got something nested"),
        ("output: [a, ~]", "output: expected a value or a list of values, got something nested"),
        ("source: 0\nhud: maybe", "--hud"),
        ("source: 0\nalpha: 2", "--alpha: expected a number from 0 to 1, got 2"),
        ("source: 0\nrender: glow", "invalid choice: 'glow'"),
        ("just words", "expected options as 'name: value', got str"),
        ("- source: 0", "got list"),
        ("", "got NoneType"),
        ("source: [", "expected YAML, got: while parsing"),
        ("source: 'a", "expected YAML, got: while scanning"),
        ("\tsource: 0", "expected YAML"),
        (b"source: \xff\xfe", "expected YAML"),
        ("source: 2026-13-45", "expected YAML, got: month must be in"),
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
    assert config(b"source: 0\n#".ljust(LIMIT_BYTES)).source == ["0"]
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
