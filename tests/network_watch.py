"""`unshare --net --mount python tests/network_watch.py COMMAND …`: run a command in a network of its own, and print whom it asks.

Every address is this machine's, every name is answered with one, and every packet is looked at, so that a library that would report
to its makers gets as far as asking. Prints one line of JSON: the command's status, the names that were resolved and the addresses
outside of 127.0.0.0/8 that were connected to.
"""

import contextlib
import ipaddress
import json
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ANSWER = "203.0.113.9"  # kept for documentation, nobody's
_IPV4, _IPV6 = 0x0800, 0x86DD
_SETTLE_S = 0.3  # for what was sent last


def enclose():
    """Make every address of the namespace its own, and its name server ours."""
    for words in ("link set lo up", "route add local 0.0.0.0/0 dev lo", "route add local ::/0 dev lo"):
        subprocess.run(["ip", *words.split()], check="::" not in words, capture_output=True)
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        file.write("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        file.flush()
        subprocess.run(["mount", "--bind", file.name, "/etc/resolv.conf"], check=True)


def answer_names(server):
    """Answer every question for an IPv4 address."""
    while True:
        with contextlib.suppress(OSError, struct.error):
            question, client = server.recvfrom(4096)
            end = 12 + question[12:].index(0) + 1
            kind = struct.unpack(">H", question[end : end + 2])[0]
            found = kind == 1
            head = question[:2] + b"\x81\x80" + struct.pack(">4H", 1, int(found), 0, 0)
            record = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + socket.inet_aton(ANSWER) if found else b""
            server.sendto(head + question[12 : end + 4] + record, client)


def look_at_packets(link, names, addresses):
    """Note names that are asked for, and where else connections begin."""
    while True:
        packet = link.recv(65535)
        kind, body = struct.unpack(">H", packet[12:14])[0], packet[14:]
        if kind == _IPV4:
            protocol, target, rest = body[9], ipaddress.ip_address(body[16:20]), body[(body[0] & 15) * 4 :]
        elif kind == _IPV6:
            protocol, target, rest = body[6], ipaddress.ip_address(body[24:40]), body[40:]
        else:
            continue
        port = struct.unpack(">H", rest[2:4])[0] if protocol in (6, 17) else 0
        begins = protocol == 17 or (protocol == 6 and rest[13] & 0x12 == 0x02)  # a datagram, or a first segment
        if protocol == 17 and port == 53:
            names.add(name_in(rest[8 + 12 :]))
        elif begins and not target.is_loopback and not target.is_multicast:
            addresses.add(f"{target}:{port}")


def name_in(question):
    """The name in a DNS question."""
    labels = []
    while question and question[0]:
        labels.append(question[1 : 1 + question[0]].decode(errors="replace"))
        question = question[1 + question[0] :]
    return ".".join(labels)


def main(command):
    enclose()
    names, addresses = set(), set()
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
    link.bind(("lo", 0))
    threading.Thread(target=answer_names, args=(server,), daemon=True).start()
    threading.Thread(target=look_at_packets, args=(link, names, addresses), daemon=True).start()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    time.sleep(_SETTLE_S)
    said = (done.stdout + done.stderr)[-2000:]
    seen = {"status": done.returncode, "said": said, "names": sorted(names), "addresses": sorted(addresses)}
    sys.stdout.write(f"{json.dumps(seen)}\n")


if __name__ == "__main__":
    Path("/etc/resolv.conf").touch()
    main(sys.argv[1:])
