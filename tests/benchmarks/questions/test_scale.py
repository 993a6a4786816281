"""scale: that it measures what it says, with a real server and a tiny network."""

import pytest

from tests.pipeline.engines.conftest import installed_servers


def test_server(asked, clip, red_bundle):
    servers = installed_servers()
    given = (
        "--parts",
        "server",
        "--clip",
        clip,
        "--model",
        red_bundle.folder,
        "--servers",
        servers,
        "--in-flight",
        "1,3",
        "--frames",
        4,
        "--rounds",
        3,
    )
    entries, printed = asked("scale", *given)
    rows = {(row["computed"], row["in_flight"]): row for row in entries["table"]["server"]}
    assert set(rows) == {("in the process", 1), ("in the process", 2)} | {
        (m, n) for m in ("raw", "shared") for n in (1, 3)
    }
    assert rows["in the process", 2]["pairs"] == [1, 1, 1]
    for memory in ("raw", "shared"):
        assert (
            entries["ratios"][f"{memory}_3_over_process"]
            == rows[memory, 3]["ratio"]
            == sorted(rows[memory, 3]["pairs"])[1]
        )
        assert entries["ratios"][f"{memory}_added_ms"] == rows[memory, 1]["added_ms"]
        assert f"| {memory} | 3 | {rows[memory, 3]['fps']:.2f} |" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--in-flight", "1,x"), "--in-flight: expected numbers from 1, got 1,x"),
        (("--rounds", "0"), "--rounds: expected 1 or more, got 0"),
        (
            ("--servers", "/nowhere"),
            "/nowhere: expected a tritonserver, got none: tests/install-triton /nowhere makes it",
        ),
    ],
)
def test_what_is_not_taken(arguments, message, capsys):
    pytest.importorskip("tritonclient.grpc")
    from benchmarks.__main__ import main

    assert main(["scale", "--parts", "server", *arguments]) == 2
    assert message in capsys.readouterr().err
