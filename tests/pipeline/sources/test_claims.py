"""What strangers claim: headers, tables and lengths of any size take no memory, and end in one sentence."""

import json
import os
import socket
import struct
import subprocess
import sys
import threading
import zlib

import pytest

WAIT_S = 60  # only a broken test waits so long
SIDE = 100_000
MOST_BYTES = 120_000_000
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells what a process took at most")

# Opens everything that it is told of, one after the other, and says how far the memory that it took at most went up.
TRY = """
import json, resource, sys
from itertools import islice
import av, cv2, numpy, PIL.Image
from pipeline.errors import SourceError
from pipeline.machine.memory import grows_at_most
from pipeline.sources import open_source
from pipeline.sources.options import LiveOptions

def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

options = LiveOptions(max_reconnects=0, connect_s=1.5, stall_s=0.5, reconnect_s=0.5, backoff_s=0.01)
for spec in sys.argv[1:]:
    before, said = most(), ""
    try:
        with grows_at_most(1 << 30):
            source = open_source(spec, options)
        with source:
            said = f"{sum(1 for _ in islice(source, 30))} frames"
    except SourceError as error:
        said = str(error)
    print(json.dumps([most() - before, said]), flush=True)
"""


def box(kind, *parts):
    content = b"".join(parts)
    return struct.pack(">I", len(content) + 8) + kind + content


def full(kind, *parts):
    return box(kind, b"\0" * 4, *parts)


def mp4(samples):
    """One track of H.264 whose tables claim so many samples."""
    matrix = b"\0\1\0\0" + b"\0" * 12 + b"\0\1\0\0" + b"\0" * 12 + b"\x40\0\0\0"
    config = box(b"avcC", bytes.fromhex("0142c00affe1000d6742c00ada0f1204ec044000000301000468ce0fc8"))
    picture = (
        struct.pack(">HH", 160, 120) + b"\0\x48\0\0\0\x48\0\0" + b"\0" * 4 + b"\0\1" + b"\0" * 32 + b"\0\x18\xff\xff"
    )
    entry = box(b"avc1", b"\0" * 6, b"\0\1", b"\0" * 16, picture, config)
    tables = box(
        b"stbl",
        full(b"stsd", struct.pack(">I", 1), entry),
        full(b"stts", struct.pack(">III", 1, samples, 1)),
        full(b"stsc", struct.pack(">IIII", 1, 1, samples, 1)),
        full(b"stsz", struct.pack(">II", 0, samples)),
        full(b"stco", struct.pack(">II", 1, 2000)),
    )
    data = box(b"dinf", full(b"dref", struct.pack(">I", 1), full(b"url ")))
    clock = full(b"mdhd", struct.pack(">IIIIHH", 0, 0, 1000, 2**31, 0, 0))
    media = box(
        b"mdia",
        clock,
        full(b"hdlr", b"\0" * 4 + b"vide" + b"\0" * 13),
        box(b"minf", full(b"vmhd", b"\0" * 8), data, tables),
    )
    head = full(
        b"tkhd", struct.pack(">IIIII", 0, 0, 1, 0, 1000), b"\0" * 16, matrix, struct.pack(">II", 160 << 16, 120 << 16)
    )
    movie = full(
        b"mvhd", struct.pack(">IIII", 0, 0, 1000, 1000), b"\0\1\0\0\1\0", b"\0" * 10, matrix, b"\0" * 24, b"\0\0\0\2"
    )
    return (
        box(b"ftyp", b"isom\0\0\2\0isomavc1")
        + box(b"moov", movie, box(b"trak", head, media))
        + box(b"mdat", b"\0" * 999)
    )


def png():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")


def jpeg():
    frame = struct.pack(">HBHHB", 17, 8, 65535, 65535, 3) + bytes((1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0))
    scan = struct.pack(">HB", 12, 3) + bytes((1, 0, 2, 0, 3, 0, 0, 63, 0))
    start = bytes.fromhex("ffd8ffe000104a46494600010100000100010000")
    return start + b"\xff\xc0" + frame + b"\xff\xda" + scan + bytes(99) + b"\xff\xd9"


def tiff():
    facts = (
        (256, 4, SIDE),
        (257, 4, SIDE),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 200),
        (277, 3, 1),
        (278, 4, SIDE),
        (279, 4, 999),
    )
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in facts)
    return b"II*\0" + struct.pack("<IH", 8, len(facts)) + entries + bytes(2000)


def webp():
    size = (SIDE - 1).to_bytes(3, "little")
    whole = b"VP8X" + struct.pack("<I", 10) + bytes(4) + size + size
    coded = b"VP8L" + struct.pack("<I", 100) + b"\x2f" + struct.pack("<I", 16383 | 16383 << 14) + bytes(95)
    return b"RIFF" + struct.pack("<I", 4 + len(whole) + len(coded)) + b"WEBP" + whole + coded


def element(name, size, content=b""):
    """An element of EBML that claims a size."""
    return bytes.fromhex(name) + (1 << 56 | size).to_bytes(8, "big") + content


HEAD = element(
    "1a45dfa3",
    24,
    bytes.fromhex("42868101") + b"\x42\x82\x88matroska" + bytes.fromhex("4287810442858102") + b"\xec\x80\x80"[:1],
)
SEGMENT = element("18538067", 2**56 - 2)
CODEC = element("1654ae6b", 2**50, element("ae", 2**49, element("63a2", 2**33, bytes(5000))))


def gif(frames):
    start = b"GIF89a" + struct.pack("<HH", 64, 48) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff"
    one = b"\x21\xf9\x04\0\x0a\0\0\0\x2c" + struct.pack("<HHHH", 0, 0, 1, 1) + b"\0" + b"\x02\x02\x44\x01\0"
    return start + one * frames


FILES = {
    "samples.mp4": (mp4(10**9), "expected"),
    "lying.png": (png(), "of at most 134217728 pixels"),
    "lying.jpg": (jpeg(), "of at most 134217728 pixels"),
    "lying.tif": (tiff(), "of at most 134217728 pixels"),
    "lying.webp": (webp(), "expected a picture"),
    "segment.mkv": (HEAD + SEGMENT, "expected a video"),
    "codec.mkv": (HEAD + SEGMENT + CODEC, "expected a video"),
    "long.gif": (gif(200_000), "30 frames"),
}
OK = b"HTTP/1.1 200 OK\r\n"
PARTS = OK + b"Content-Type: multipart/x-mixed-replace; boundary=b\r\n"
CHUNKS = b"Transfer-Encoding: chunked\r\n\r\n10000000000\r\n"
# What is sent first, what is then sent without end, and what is said of it.
STREAMS = {
    "head-of-a-part": (PARTS + b"\r\n--b\r\n", b"X: y\r\n", "a head of at most"),
    "line-of-a-part": (PARTS + b"\r\n--b\r\n", b"x", "expected parts of multipart"),
    "no-parts": (PARTS + b"\r\n", b"x: y\r\n", "expected parts of multipart"),
    "part-of-a-terabyte": (
        PARTS + b"\r\n--b\r\nContent-Length: 1000000000000\r\n\r\n",
        bytes(1000),
        "of at most 64 MiB",
    ),
    "part-without-end": (PARTS + b"\r\n--b\r\n\r\n", bytes(99_999), "of at most 64 MiB|gave up"),
    "chunk-of-a-terabyte": (PARTS + CHUNKS, b"x: y\r\n", "expected parts of multipart"),
    "size-of-a-chunk": (PARTS + b"Transfer-Encoding: chunked\r\n\r\n", b"0", "gave up"),
    "head": (OK, b"X: y\r\n", "no answer of HTTP"),
    "line-of-the-head": (OK, b"x", "no answer of HTTP"),
    "matroska": (
        OK + b"Content-Length: 1000000000000\r\n\r\n" + HEAD + SEGMENT + CODEC,
        bytes(9999),
        "expected a stream|gave up",
    ),
    "samples": (OK + b"Content-Length: 1000000000000\r\n\r\n" + mp4(10**9), bytes(9999), "expected a stream|gave up"),
}


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """What became of each: how far memory went up at most, and what was said."""
    folder = tmp_path_factory.mktemp("claims")
    specs = {}
    for name, (content, _) in FILES.items():
        (folder / name).write_bytes(content)
        specs[name] = str(folder / name)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        place = f"127.0.0.1:{listening.getsockname()[1]}"
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        specs |= {name: f"http://{place}/{name}" for name in STREAMS}
        command = [sys.executable, "-c", TRY, *specs.values()]
        environment = {**os.environ, "OPENCV_IO_MAX_IMAGE_PIXELS": str(1 << 27)}  # as the command sets it
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 0, done.stderr
    return dict(zip(specs, map(json.loads, done.stdout.splitlines()), strict=True))


def serve(listening):
    while True:
        try:
            peer, _ = listening.accept()
        except OSError:
            return
        threading.Thread(target=answer, args=(peer,), daemon=True).start()


def answer(peer):
    with peer:
        peer.settimeout(5)
        try:
            name = peer.recv(4096).split(b" ")[1].decode().strip("/")
            first, again, _ = STREAMS[name]
            peer.sendall(first)
            while True:
                peer.sendall(again * max(1, 65536 // len(again)))
        except OSError:
            pass


@pytest.mark.parametrize("name", [*FILES, *STREAMS])
def test_a_claim_takes_no_memory(tried, name):
    grown_bytes, said = tried[name]
    expected = {**FILES, **STREAMS}[name][-1]
    assert any(text in said for text in expected.split("|")), said
    assert "\n" not in said
    assert grown_bytes < MOST_BYTES
