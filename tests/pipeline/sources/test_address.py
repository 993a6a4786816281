"""Addresses taken apart and put together."""

import os

import pytest

from pipeline.sources.address import Address

LATIN_1, TEA = os.fsdecode(b"caf\xe9"), os.fsdecode(b"th\xe9")


@pytest.mark.parametrize("scheme", ["rtsp", "http", "https", "mqtt"])
def test_bytes_of_the_command_line_that_are_no_utf_8_are_sent_as_they_are(scheme):
    address = Address.parse(f"{scheme}://{LATIN_1}:{LATIN_1}@camera/{TEA}?{TEA}")
    assert address.bare_url == f"{scheme}://camera/th%E9?th%E9"
    assert address.url == f"{scheme}://caf%E9:caf%E9@camera/th%E9?th%E9"
    assert not any(secret in address.name for secret in address.secrets)
