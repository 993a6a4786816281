import pytest

from pipeline.errors import OptionError
from pipeline.page.access import TOKEN_LENGTH, Access, new_token

TOKEN = "correct-horse-battery"


def test_a_token_made_is_long_and_new():
    assert new_token() != new_token()
    assert len(new_token()) >= 2 * TOKEN_LENGTH
    assert Access(new_token()).needs_token


@pytest.mark.parametrize(
    "token",
    ["", "a" * 15, "with some spaces in it", "a" * 257, "unprintable\x00\x01\x02\x03\x04\x05", "ümläute-ümläute-ü"],
)
def test_a_token_that_is_short_or_fits_no_header_is_refused_and_not_told(token):
    with pytest.raises(OptionError, match=r"expected 16 to 256 letters, .* got \d+ characters") as caught:
        Access(token)
    assert not token or token not in str(caught.value)


@pytest.mark.parametrize("name", ["", "http://camera", "camera.local/x", "a b", "[camera]"])
def test_a_name_that_no_header_can_hold_is_refused(name):
    with pytest.raises(OptionError, match=r"name of the page: expected one such as camera\.local"):
        Access(None, [name])


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "[::1]:8080", "localhost.", "[::ffff:127.0.0.1]"]
)
def test_names_of_this_machine_are_known_on_loopback(host):
    assert Access(None).host_problem([host], "127.0.0.1") == ""


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
        "192.168.1.5",
        "0.0.0.0",
        "a,b",
    ],
)
def test_other_names_are_refused_on_loopback(host):
    assert Access(None).host_problem([host], "127.0.0.1")


@pytest.mark.parametrize("hosts", [[], [""], ["localhost", "localhost"], ["localhost:port"], ["::1"]])
def test_a_host_header_that_is_missing_doubled_or_malformed_is_refused(hosts):
    assert "one Host header" in Access(None).host_problem(hosts, "127.0.0.1")


def test_on_a_network_the_address_that_was_connected_to_is_known_and_no_other():
    access = Access(TOKEN, ["Camera.local", "203.0.113.9"])
    for host in ("192.168.1.5:8080", "camera.local", "203.0.113.9:80", "localhost"):
        assert access.host_problem([host], "192.168.1.5") == ""
    assert "--serve-name cam.example" in access.host_problem(["cam.example"], "192.168.1.5")
    assert access.host_problem(["192.168.1.6"], "192.168.1.5")
    assert access.host_problem(["[fe80::1]:8080"], "fe80::1%eth0") == ""


def test_requests_of_other_sites_are_refused():
    access = Access(None)
    assert access.origin_problem([], "localhost:8080") == ""
    for origin in ("http://localhost:8080", "https://LOCALHOST:8080"):
        assert access.origin_problem([origin], "localhost:8080") == ""
    for origins in (
        ["null"],
        ["http://evil.example"],
        ["http://localhost"],
        ["http://localhost:8080"] * 2,
        ["localhost:8080"],
    ):
        assert access.origin_problem(origins, "localhost:8080")


def test_only_the_right_token_and_its_cookie_fit():
    access = Access(TOKEN)
    assert access.token_fits(TOKEN, "peer")
    assert access.cookie_fits(access.cookie)
    assert TOKEN not in access.cookie
    assert access.cookie == Access(TOKEN).cookie != Access(TOKEN + "x").cookie
    for wrong in ("", TOKEN[:-1], TOKEN + " ", TOKEN.upper(), "ü", "\udcff"):
        assert not access.token_fits(wrong, "peer")
        assert not access.cookie_fits(wrong)


def test_after_ten_wrong_tokens_an_address_waits_a_minute_and_others_do_not():
    now_s = [100.0]
    access = Access(TOKEN, clock_s=lambda: now_s[0])
    for number in range(10):
        assert access.wait_s("guesser") == 0
        access.token_fits("wrong" * 4, "guesser")
        now_s[0] += 1
        assert access.wait_s("owner") == 0, number
    assert access.wait_s("guesser") == pytest.approx(50)
    now_s[0] += 51
    assert access.wait_s("guesser") == 0


def test_guessers_from_many_addresses_fill_no_memory():
    access = Access(TOKEN)
    for number in range(3000):
        access.token_fits("wrong" * 4, f"peer {number}")
    assert len(access._wrong_s) <= 1024
