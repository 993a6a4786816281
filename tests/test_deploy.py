"""Units, containers and configuration are what their programs take, and their documents are true."""

import fnmatch
import inspect
import json
import re
import shlex
import subprocess
import sys
import textwrap
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks.questions import energy
from compile.options import _parser as compile_parser
from compile.options import parse_options as parse_compile_options
from pipeline.command.command_line import OptionParser
from pipeline.command.options import _parser as pipeline_parser
from pipeline.command.options import parse_options
from pipeline.errors import OptionError
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.page.options import Limits, PageOptions, Watched
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from pipeline.results.finder import Finder
from pipeline.sinks import sink_kind
from pipeline.sinks.json_lines import results_of
from pipeline.sources import source_kind
from pipeline.sources.options import LiveOptions
from pipeline.stages.telemetry import State, Telemetry

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
LIVE, JETSON = (ROOT / "docs" / name for name in ("live.md", "jetson.md"))
UNITS = [DEPLOY / "edgemask.service", DEPLOY / "edgemask@.service"]
DOCKERFILES = sorted(DEPLOY.glob("*.Dockerfile"))
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def read(path):
    return path.read_text(encoding="utf-8")


def ids(path):
    return path.name


# The units.


def directives(path):
    """(section, name, value) of every line of a unit."""
    section, found = "", []
    for line in read(path).splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            name, mark, value = line.partition("=")
            assert mark, line
            found.append((section, name, value))
    return found


def values(path, name):
    return [value for _, given, value in directives(path) if given == name]


@pytest.mark.parametrize("unit", UNITS, ids=ids)
def test_units_call_the_command_with_options_that_it_has(unit):
    (command,) = values(unit, "ExecStart")
    program, *arguments = shlex.split(command)
    script = re.search(r'^edgemask = "([\w.]+):', PROJECT, re.MULTILINE)
    assert Path(program).name == "edgemask"
    assert script[1] == "edgemask.__main__"
    known = {option for action in pipeline_parser()._actions for option in action.option_strings}
    assert arguments[0] == "--config"
    assert all(argument in known for argument in arguments if argument.startswith("-"))
    (credential,) = values(unit, "LoadCredential")
    name, _, path = credential.partition(":")
    assert arguments[1] == f"${{CREDENTIALS_DIRECTORY}}/{name}"
    assert re.fullmatch(r"/etc/edgemask/(edgemask|%i)\.yaml", path)


@pytest.mark.parametrize("unit", UNITS, ids=ids)
def test_units_are_watched_and_never_give_up(unit):
    assert values(unit, "Type") == ["notify"]
    assert int(values(unit, "WatchdogSec")[0]) > 20  # a frame may take so long before the watchdog is no more fed
    assert values(unit, "Restart") == ["on-failure"]
    assert values(unit, "StartLimitIntervalSec") == ["0"]
    assert values(unit, "SuccessExitStatus") == ["143"]
    assert values(unit, "KillMode") == ["mixed"]  # GStreamer's processes end with their input


@pytest.mark.parametrize("unit", UNITS, ids=ids)
def test_units_leave_gpu_and_cameras_usable(unit):
    given = {name for _, name, _ in directives(unit)}
    assert not given & {"MemoryDenyWriteExecute", "PrivateDevices", "PrivateUsers", "PrivateNetwork"}
    assert values(unit, "SupplementaryGroups") == ["video render"]
    assert values(unit, "DeviceAllow") == ["char-* rwm"]
    assert "AF_UNIX" in values(unit, "RestrictAddressFamilies")[0].split()


def test_units_hold_no_secret():
    for unit in UNITS:
        assert not re.search(r"^[^#]*(TOKEN|password)=", read(unit), re.MULTILINE)


def test_the_template_differs_in_names_alone():
    plain, template = map(directives, UNITS)
    named = [
        (
            section,
            name,
            re.sub(r"(/etc/edgemask/|edgemask-)%i(\.environment)?", _plain_name, value).replace(" %i:", ":"),
        )
        for section, name, value in template
    ]
    assert named == plain
    assert template != plain


def _plain_name(match):
    if match[1] == "edgemask-":
        return "edgemask"
    return f"{match[1]}{'environment' if match[2] else 'edgemask'}"


@pytest.mark.needs_program("systemd-analyze")
def test_systemd_takes_the_units_and_rates_them_as_the_document_says(tmp_path):
    for unit in UNITS:
        text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", read(unit), flags=re.MULTILINE)
        (tmp_path / unit.name.replace("@", "@door")).write_text(text, encoding="utf-8")
    drop_in = tmp_path / "edgemask.service.d" / "csi.conf"
    drop_in.parent.mkdir()
    drop_in.write_text(read(DEPLOY / "edgemask-csi.conf"), encoding="utf-8")
    units = sorted(map(str, tmp_path.glob("*.service")))
    assert len(units) == len(UNITS)
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")
    told = float(re.search(r"rates it below (\d\.\d)", " ".join(read(LIVE).split()))[1])
    for unit in units:
        rated = subprocess.run(
            ["systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={round(10 * told)}", unit],
            capture_output=True,
            text=True,
            check=False,
        )
        assert rated.returncode == 0, rated.stdout[-300:]


# The configuration.


def test_the_example_configuration_is_taken():
    options = parse_options(["--config", str(DEPLOY / "edgemask.yaml")])
    assert options.page.address == "127.0.0.1:8080"
    assert options.model.may_build  # in the cache, for the service may not write to the bundle
    assert [sink_kind(output) for output in options.outputs.names] == ["video", "results"]
    assert source_kind(options.sources[0]) == "stream"


def test_every_choice_in_the_example_configuration_is_one(tmp_path):
    choices = re.findall(r"^#([a-z].*)$", read(DEPLOY / "edgemask.yaml"), re.MULTILINE)
    assert len(choices) > 10
    for choice in choices:
        (tmp_path / "c.yaml").write_text(f"{choice}\n" + ("" if choice.startswith("source:") else "source: '0'\n"))
        options = parse_options(["--config", str(tmp_path / "c.yaml")])
        for source in options.sources:
            source_kind(source)
        for output in options.outputs.names:
            sink_kind(output)


def test_a_misspelt_key_names_the_nearest(tmp_path):
    text = read(DEPLOY / "edgemask.yaml")
    (tmp_path / "c.yaml").write_text(text.replace("\nsegment-time:", "\nsegmenttime:"), encoding="utf-8")
    with pytest.raises(OptionError, match="unknown key 'segmenttime': did you mean 'segment-time'"):
        parse_options(["--config", str(tmp_path / "c.yaml")])


# The containers.


def stages(path):
    """name: (base, [(instruction, rest)]) of every stage of a Dockerfile."""
    text = re.sub(r"^\s*#.*\n", "", read(path), flags=re.MULTILINE).replace("\\\n", " ")
    found = {}
    for line in filter(str.strip, text.splitlines()):
        instruction, _, rest = line.strip().partition(" ")
        assert instruction.isupper(), line
        if instruction == "FROM":
            base, _, name = re.fullmatch(r"(\S+)( AS (\S+))?", rest.strip()).groups()
            found[name] = (base, [])
        else:
            list(found.values())[-1][1].append((instruction, rest.strip()))
    return found


def lineage(all_stages, name):
    """The instructions of a stage and of those that it is built on."""
    base, instructions = all_stages[name]
    return (lineage(all_stages, base) if base in all_stages else []) + instructions


@pytest.mark.parametrize("path", DOCKERFILES, ids=ids)
def test_images_are_built_from_named_releases(path):
    found = stages(path)
    for base, _ in found.values():
        assert base in found or re.fullmatch(r"nvcr\.io/nvidia/[\w-]+:(?!latest)[\w.-]+", base), base
    assert list(found)[-1] == "run"  # what is built without --target
    assert "build" in found


@pytest.mark.parametrize("path", DOCKERFILES, ids=ids)
def test_the_run_half_is_without_pytorch_and_compiler(path):
    found = stages(path)
    run = " ".join(rest for _, rest in lineage(found, "run"))
    assert not re.search(r"\b(torch|torchvision|onnxscript)\b|\[[^]]*\b(compile|torch-tensorrt|dev)\b[^]]*\]", run)
    assert not re.search(r"build-essential|python3-dev|git\b", run)
    assert "torch==" in " ".join(rest for _, rest in lineage(found, "build"))


@pytest.mark.parametrize("path", DOCKERFILES, ids=ids)
def test_containers_run_as_a_plain_user_and_hold_no_secret(path):
    found = stages(path)
    for target in ("run", "build"):
        users = [rest for instruction, rest in lineage(found, target) if instruction == "USER"]
        assert users
        assert int(users[-1]) > 999
        assert f"--uid {users[-1]}" in read(path)
    assert not re.search(r"TOKEN|PASSWORD|SECRET", read(path))
    assert not any(instruction == "ARG" for _, instructions in found.values() for instruction, _ in instructions)


@pytest.mark.parametrize("path", DOCKERFILES, ids=ids)
def test_what_is_copied_is_there_and_let_in(path):
    allowed = [line[1:] for line in read(ROOT / ".dockerignore").splitlines() if line.startswith("!")]
    copied = []
    for _, instructions in stages(path).values():
        for instruction, rest in instructions:
            if instruction == "COPY" and not rest.startswith("--from="):
                copied += rest.split()[:-1]
    assert "pyproject.toml" in copied
    for name in copied:
        assert (ROOT / name).exists(), name
        assert any(fnmatch.fnmatch(name, pattern) for pattern in allowed), name
    packages = re.search(r"^packages = (\[.*\])\n\n\[tool.ruff\]", PROJECT, re.MULTILINE)[1]
    assert set(json.loads(packages)) <= set(copied)


@pytest.mark.parametrize("path", DOCKERFILES, ids=ids)
def test_extras_that_images_install_are_the_projects(path):
    extras_table = re.search(r"\[project\.optional-dependencies\]\n(.*?)\n\[", PROJECT, re.DOTALL)[1]
    defined = re.findall(r"^([a-z][a-z-]+) = \[", extras_table, re.MULTILINE)
    for extras in re.findall(r"edgemask\[([\w,-]+)\]", read(path)):
        assert set(extras.split(",")) <= set(defined)
    compile_extra = re.search(r"^compile = \[(.*?)\]", PROJECT, re.MULTILINE | re.DOTALL)[1]
    needed = set(re.findall(r'"([\w-]+)[<>=]', compile_extra)) - {"opencv-python"}
    build = " ".join(rest for _, rest in lineage(stages(path), "build"))
    for package in needed - {"onnx", "onnxruntime"} if "edgemask[tensorrt" in build else needed:
        assert re.search(rf"(?<![\w-]){package}[<>=]", build), package


@pytest.mark.parametrize("path", DOCKERFILES, ids=ids)
def test_images_say_whether_they_are_well(path):
    checks = [rest for instruction, rest in lineage(stages(path), "run") if instruction == "HEALTHCHECK"]
    assert len(checks) == 1
    copied = re.search(r"COPY (deploy/healthcheck\.py) (\S+)", read(path))
    assert copied[2] in checks[0]


def test_containers_of_the_compose_file_get_cameras_and_the_argus_socket():
    services = yaml.safe_load(read(DEPLOY / "compose.yaml"))["services"]
    assert {service["build"]["dockerfile"] for service in services.values()} == {
        f"deploy/{path.name}" for path in DOCKERFILES
    }
    for name, service in services.items():
        assert service["profiles"] == [name]
        assert service["build"]["target"] in stages(ROOT / service["build"]["dockerfile"])
        assert service["devices"] == ["${CAMERA:-/dev/null}:/dev/video0"]
        assert "video" in service["group_add"]
        targets = {
            volume["target"] if isinstance(volume, dict) else volume.split(":")[1] for volume in service["volumes"]
        }
        assert {"/etc/edgemask/edgemask.yaml", "/var/lib/edgemask", "/var/cache/edgemask"} <= targets
        assert ("/tmp/argus_socket" in targets) == name.startswith("jetpack")
        assert (service.get("runtime") == "nvidia") == name.startswith("jetpack")
        assert service["cap_drop"] == ["ALL"]
        assert service["restart"] == "unless-stopped"


@pytest.mark.needs_program("hadolint")
@pytest.mark.parametrize("path", DOCKERFILES, ids=ids)
def test_hadolint_has_nothing_to_say(path):
    done = subprocess.run(["hadolint", "--no-color", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


# The health check, against the page itself.


@pytest.fixture
def page():
    """``page(healthy, token)``: the page's address for the health check."""
    pytest.importorskip("aiohttp")
    from pipeline.bundles.bundle import Manifest
    from pipeline.page.sink import PageSink
    from pipeline.render.annotations import Annotations

    sinks = []

    def start(problem="", token=None):
        renderer = Renderer(Look(), "binary")
        manifest = Manifest("red", "binary", ("subject",), (1, 1), "fp32", {}, {}, {}, "")
        annotations = Annotations(manifest, "none", renderer, hud=False, legend=False)
        watched = Watched({"door": Telemetry("door")}, ("subject",), healthy=lambda: problem)
        sinks.append(PageSink(PageOptions("127.0.0.1:0", token), watched, renderer, annotations))
        return f"{sinks[-1].url}healthz"

    yield start
    for sink in sinks:
        sink.close()


def health(url, **environment):
    done = subprocess.run(
        [sys.executable, "-I", str(DEPLOY / "healthcheck.py")],
        env={"EDGEMASK_HEALTH_URL": url, "http_proxy": "http://127.0.0.1:9", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout.strip()


def test_a_page_that_is_well_is_healthy(page):
    assert health(page()) == (0, "ok")


def test_the_health_check_brings_the_token(page):
    url = page(token="0123456789abcdef")
    assert health(url, EDGEMASK_TOKEN="0123456789abcdef") == (0, "ok")
    status, said = health(url)
    assert status == 1
    assert "token needed" in said


def test_frames_that_do_not_move_are_told(page):
    assert health(page("door: none was written for 21 s")) == (1, "door: none was written for 21 s")


def test_no_page_at_all_is_not_healthy():
    status, said = health("http://127.0.0.1:9/healthz")
    assert status == 1
    assert "refused" in said


# The documents.


def commands(path, module):
    """Arguments of every ``python -m module`` in the shell blocks of a document."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", read(path), re.DOTALL)).replace("\\\n", " ")
    return [
        shlex.split(line, comments=True)[3:] for line in blocks.splitlines() if line.startswith(f"python -m {module} ")
    ]


@pytest.mark.parametrize("document", [LIVE, JETSON], ids=ids)
def test_commands_parse(document):
    found = commands(document, "pipeline")
    assert found
    for arguments in found:
        if "--config" in arguments:
            arguments = ["--config", str(DEPLOY / Path(arguments[1]).name)]
        options = parse_options(arguments)
        for source in options.sources:
            source_kind(source)
        for output in options.outputs.names:
            sink_kind(output)
    for arguments in commands(document, "compile"):
        parse_compile_options(arguments)


@pytest.mark.parametrize("document", [LIVE, JETSON], ids=ids)
def test_options_exist_and_take_the_values_that_are_told(document):
    text = re.sub(r"```.*?```", "", read(document), flags=re.DOTALL)
    parsers = (pipeline_parser(), compile_parser(), OptionParser())
    energy.add_options(parsers[-1])
    known = {option for parser in parsers for action in parser._actions for option in action.option_strings}
    of_pipeline = {option for action in parsers[0]._actions for option in action.option_strings}
    others = {"--system-site-packages"}  # of venv
    told = re.findall(r"`(--[a-z][a-z-]*)([^`]*)`", text) + re.findall(r"`[^`]* (--[a-z][a-z-]*)([^`]*)`", text)
    assert told
    for option, rest in told:
        assert option in known | others, option
        value = rest.split()[0] if rest.split() else None
        if option == "--target" or value is None or option not in of_pipeline:
            continue
        if re.fullmatch(r"[\dA-Za-z.:]+", value) and not value.isupper():
            parse_options(["--source", "0", f"{option}={value}"])


def test_defaults_are_those_of_the_code():
    text = " ".join(read(LIVE).split())
    live, options = LiveOptions(), parse_options(["--source", "0"])
    assert options.live == live
    assert f"`--stall {live.stall_s:g}`" in text
    assert f"`--reconnect {live.reconnect_s:g}`" in text
    assert f"may be silent for {live.connect_s:g} s" in text
    assert f"up to {live.backoff_s:g} s, doubled with each to {live.backoff_max_s:g} s" in text
    assert f"anew after {live.steady_s:g} s of frames" in text
    assert f"`--serve-viewers {Limits().viewers}`" in text
    assert options.recording.min_free_bytes == 200_000_000
    assert "`--min-free 200M`" in text
    assert all(state.value in text for state in (State.CONNECTING, State.RUNNING, State.STALLED, State.RECONNECTING))


def test_the_line_of_results_is_of_the_form_that_is_written():
    told = json.loads(re.search(r"```json\n(.*)\n```", read(LIVE))[1])
    frame = Frame(np.zeros((48, 64, 3), np.uint8), 0, 0.0, "clip.mp4", "clip_0")
    frame.mask = np.zeros((48, 64), np.uint8)
    frame.mask[:24] = 255
    video = SourceInfo("clip.mp4", "", fps=Fraction(25))
    written = results_of(frame, Finder(Renderer(Look(), "binary"), ("subject",), [video]))
    assert told.keys() == written.keys()
    assert told["classes"][0].keys() == written["classes"][0].keys()
    assert told["classes"][0]["boxes"][0].keys() == written["classes"][0]["boxes"][0].keys()
    assert told["size_hw"] == [720, 1280]


def test_all_metrics_are_told_and_no_other():
    pytest.importorskip("prometheus_client")
    from pipeline.page.metrics import Metrics
    from pipeline.stages.stage_timer import StageTimer

    telemetry, timer = Telemetry("door"), StageTimer()
    telemetry.came_in()
    telemetry.went_out(5.0)
    timer.add("engine", 5.0)
    drift = {"distance": 1.0, "limit": 2.0, "unlike": False}
    run = Watched({}, about={"version": "1"}, timer=timer, swaps=lambda: {"taken": 1}, drift=lambda _: drift)
    text = Metrics(lambda: [telemetry.snapshot()], lambda: 0, run).text().decode()
    written = set(re.findall(r"^# TYPE (edgemask_\w+)", text, re.MULTILINE))
    told = dict(re.findall(r"^\| `(edgemask_\w+)` \| ([\w, ]*)", read(LIVE), re.MULTILINE))
    assert told.keys() == written
    for name in written - {"edgemask_build_info"}:
        labels = {
            label
            for line in re.findall(rf"^{name}\{{(.*)\}}", text, re.MULTILINE)
            for label in re.findall(r"(\w+)=", line)
        }
        assert labels == set(filter(None, told[name].strip().split(", "))), name


def test_addresses_of_the_page_are_told():
    pytest.importorskip("aiohttp")
    from pipeline.page.server import PageServer

    routes = set(re.findall(r'add_get\("(/[\w.]+)"', inspect.getsource(PageServer)))
    assert routes - {"/live"} <= set(re.findall(r"`(/[\w.]+)`", read(LIVE)))


@pytest.mark.parametrize("document", [LIVE, JETSON], ids=ids)
def test_links_lead_to_files_and_headings(document):
    for link, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([\w-]+))?\)", read(document)):
        if "://" in link:
            continue
        path = document.parent / link if link else document
        assert path.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", read(path), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, anchor


def test_the_jetsons_are_those_that_the_doctor_knows():
    from pipeline.machine.machine import _JETPACKS

    rows = re.findall(r"^\| (\d\.\d) \| [\w, ]+ \| ([\d.]+) \|", read(JETSON), re.MULTILINE)
    assert [jetpack for jetpack, _ in rows] == ["6.2", "7.2"]
    for jetpack, l4t in rows:
        fits = [start for start in _JETPACKS if (l4t + ".").startswith(start.rstrip(".") + ".")]
        assert _JETPACKS[max(fits, key=len)] == jetpack


@pytest.mark.parametrize("document", [LIVE, JETSON, *DEPLOY.glob("*.y*ml"), *DOCKERFILES], ids=ids)
def test_files_that_are_named_are_there(document):
    for name in set(re.findall(r"\bdeploy/[\w@.-]+\w", read(document))):
        assert (ROOT / name).exists(), name


def test_the_docker_command_of_the_document_is_that_of_the_compose_file():
    block = next(block for block in re.findall(r"```sh\n(.*?)```", read(JETSON), re.DOTALL) if "docker run" in block)
    words = shlex.split(textwrap.dedent(block).replace("\\\n", " "), comments=True)
    service = yaml.safe_load(read(DEPLOY / "compose.yaml"))["services"]["jetpack6"]
    mounts = " ".join(words)
    for volume in service["volumes"]:
        target = volume["target"] if isinstance(volume, dict) else volume.split(":")[1]
        assert re.search(rf"[=:]{re.escape(target)}\b", mounts), target
    for word in ("--read-only", "--init", "--cap-drop", "no-new-privileges", "unless-stopped", service["image"]):
        assert word in words
