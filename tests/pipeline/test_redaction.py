import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import SourceError
from pipeline.redaction import redact, secrets_of
from pipeline.sources import open_source
from pipeline.sources.address import Address
from pipeline.sources.stream import StreamSource

QUICK = settings(max_examples=150, deadline=None, database=None)

plain = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=8)
# Nothing that ends a line: an address with control characters is refused.
passwords = st.text(
    st.one_of(st.sampled_from("@/#:%?&=+ \\\"'$!;,|[]{}()*~é漢"), st.characters(min_codepoint=33, max_codepoint=126)),
    min_size=1,
    max_size=16,
)
schemes = st.sampled_from(["rtsp", "rtsps", "http", "https"])
hosts = st.sampled_from(["cam", "cam.example", "192.168.1.9", "[fe80::1]", "cam:8554", "127.0.0.1:80"])
paths = st.sampled_from(["", "/", "/live/1", "/Streaming/Channels/101", "/mjpg?size=1&fps=5"])
around = st.sampled_from(
    ["{}", "cannot open '{}'", 'error: "{}" (no answer)', "source: {}, RTSP", "[rtsp @ 0x55d0] {}: refused", "<{}>"]
)


@QUICK
@given(schemes, plain, passwords, passwords, hosts, paths, around)
def test_a_text_tells_nothing_of_the_password_in_it(scheme, user, one, other, host, path, text):
    def shown(password):
        return redact(text.format(f"{scheme}://{user}:{password}@{host}{path}"))

    assert shown(one) == shown(other)
    assert f"@{host}" in shown(one)
    assert redact(shown(one)) == shown(one)


@QUICK
@given(schemes, plain, passwords, passwords, hosts, paths)
def test_a_source_tells_nothing_of_its_password(scheme, user, one, other, host, path):
    def shown(password):
        spec = f"{scheme}://{user}:{password}x9@{host}{path}"
        try:
            with StreamSource(spec) as source:
                return (repr(source.info), source.telemetry.snapshot().name, repr(Address.parse(spec)))
        except SourceError as error:
            return (str(error),)

    first, second = shown(one), shown(other)
    if len(first) == len(second) == 3:
        assert first[:2] == second[:2]  # what a strange password makes of the host does not show either
    secret = f"{one}x9"
    assert len(secret) < 5 or not any(secret in text for text in first)


@QUICK
@given(plain, passwords, st.sampled_from(["{}", "Unauthorized {} at http", "tried '{}' three times"]))
def test_what_is_known_to_be_secret_is_hidden_in_every_spelling(user, password, text):
    from urllib.parse import quote

    secret = f"{password}-Z9q"
    address = Address.parse(f"rtsp://{user}:{quote(secret, safe='')}@cam/1")
    assert address.password == secret
    for spelling in (secret, quote(secret), quote(secret, safe=""), repr(secret)[1:-1]):
        assert spelling not in redact(text.format(spelling), *address.secrets)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://u:p@h/1", "rtsp://***@h/1"),
        ("RTSP://u:p@h/1", "RTSP://***@h/1"),
        ("https://token@h/1", "https://***@h/1"),
        ("rtsp://a:b@h1/1 and http://c:d@h2/2 both", "rtsp://***@h1/1 and http://***@h2/2 both"),
        ("rtsp://u:p@h/1\nhttp://h2/", "rtsp://***@h/1\nhttp://h2/"),
        ("rtsp://u:a/b@c d#e@h:554/1", "rtsp://***@h:554/1"),
        ("http://h/a?user=me&password=pw#1&size=9", "http://h/a?user=me&password=***&size=9"),
        ("http://h/a?access_token=x.y-z", "http://h/a?access_token=***"),
        ("http://h/a?api_key=1&sig=2", "http://h/a?api_key=***&sig=***"),
        ("rtsp://h/user=admin_password=abc_channel=1.sdp", "rtsp://h/user=admin_password=***_channel=1.sdp"),
        ('rtspsrc user-id=me user-pw="a \\"b" ! x', "rtspsrc user-id=me user-pw=*** ! x"),
        ("user-pw='a b' ! x", "user-pw=*** ! x"),
        ("no address, monkey=1, a@b.c", "no address, monkey=1, a@b.c"),
        ("rtsp://cam/1: no answer", "rtsp://cam/1: no answer"),
        ("", ""),
    ],
)
def test_examples(text, shown):
    assert redact(text) == shown


def test_secrets_that_are_one_letter_leave_a_message_readable():
    assert redact("no answer at all", "a", "n") == "no answer at all"
    assert redact("rtsp://n:a@cam: no answer", *secrets_of("rtsp://n:a@cam")) == "rtsp://***@cam: no answer"


def test_values_of_a_query_with_spaces_are_known():
    assert secrets_of("http://cam/x?token=two words&size=1")[-1] == "two words"
    assert redact("it said two words", *secrets_of("http://cam/x?token=two words")) == "it said ***"


@pytest.mark.parametrize(
    ("spec", "url", "name"),
    [
        ("rtsp://cam/1", "rtsp://cam/1", "cam/1"),
        ("rtsp://cam", "rtsp://cam", "cam"),
        ("RTSP://cam:8554/a b/", "rtsp://cam:8554/a%20b/", "cam:8554/a b"),
        ("http://[::1]:80/x?token=abc", "http://[::1]:80/x?token=abc", "[::1]:80/x"),
        ("rtsp://u:p@cam/1", "rtsp://u:p@cam/1", "cam/1"),
        ("rtsp://u:p%40q@cam/1", "rtsp://u:p%40q@cam/1", "cam/1"),
        ("rtsp://u:p@q@cam/1", "rtsp://u:p%40q@cam/1", "cam/1"),
        ("rtsp://u:p/q#r?s@cam/1", "rtsp://u:p%2Fq%23r%3Fs@cam/1", "cam/1"),
        ("rtsp://u:100%@cam/1", "rtsp://u:100%25@cam/1", "cam/1"),
        ("rtsp://u:a b:c@cam/1", "rtsp://u:a%20b%3Ac@cam/1", "cam/1"),
        ("http://cam/x@y", "http://cam/x@y", "y"),
    ],
)
def test_what_is_connected_to_and_what_is_shown(spec, url, name):
    address = Address.parse(spec)
    assert (address.url, address.name) == (url, name)


@pytest.mark.parametrize(
    "spec", ["rtsp://", "rtsp:///1", "http://u:secret@", "http://u:secret@cam:port/", "rtsp://cam:99999/"]
)
def test_an_address_without_a_host(spec):
    with pytest.raises(
        SourceError, match=r"^(rtsp|http)://…: expected \w+://user:password@host:port/path, got"
    ) as caught:
        open_source(spec)
    assert "secret" not in str(caught.value)
