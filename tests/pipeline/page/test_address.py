import socket

import pytest

from pipeline.errors import OptionError, SinkError
from pipeline.page.address import is_loopback, listen, url_of


@pytest.mark.parametrize(
    "address", ["", "1.2.3.4.5:x", "127.0.0.1:99999", "::1:8080", "99999", "http://127.0.0.1:80", "[::1", "a:1:2"]
)
def test_an_address_written_otherwise_is_refused(address):
    with pytest.raises(OptionError, match=r"--serve: expected HOST:PORT such as 127\.0\.0\.1:8080"):
        listen(address)


def test_a_taken_port_and_an_unknown_host_are_told_in_one_line():
    with (
        listen("127.0.0.1:0") as taken,
        pytest.raises(SinkError, match=r"--serve .*cannot listen there \(Address already in use\)"),
    ):
        listen(f"127.0.0.1:{taken.getsockname()[1]}")
    with pytest.raises(SinkError, match=r"--serve 192\.0\.2\.7:0: cannot listen there \("):
        listen("192.0.2.7:0")
    with pytest.raises(SinkError, match="is not known here"):
        listen(f"{'a' * 70}.invalid:0")


def test_addresses_and_how_a_browser_is_told():
    with listen("localhost:0") as here, listen("0.0.0.0:0") as everywhere, listen(":0") as default, listen("0") as port:
        assert is_loopback(here)
        assert is_loopback(default)
        assert is_loopback(port)
        assert not is_loopback(everywhere)
        assert url_of(default) == f"http://127.0.0.1:{default.getsockname()[1]}/"
        assert "0.0.0.0" not in url_of(everywhere)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_ipv6():
    try:
        listening = listen("[::1]:0")
    except SinkError:
        pytest.skip("this machine has no IPv6 address")
    with listening:
        assert is_loopback(listening)
        assert url_of(listening).startswith("http://[::1]:")
