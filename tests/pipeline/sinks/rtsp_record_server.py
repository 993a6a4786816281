"""An RTSP server to publish to, run by the system's Python, which has GStreamer: rtsp_record_server.py PORT FOLDER

Port 0 is any free one. Each session's H.264 goes to FOLDER/session-N.h264; "port N" and "session N" are told on standard output.
"""

import itertools
import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402


def main(port, folder):
    Gst.init(None)
    server = GstRtspServer.RTSPServer(service=port, address="127.0.0.1")
    numbers = itertools.count(1)

    def configure(_, media):
        number = next(numbers)
        media.get_element().get_by_name("file").set_property("location", f"{folder}/session-{number}.h264")
        sys.stdout.write(f"session {number}\n")
        sys.stdout.flush()

    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(
        "( rtph264depay name=depay0 ! h264parse config-interval=-1 ! video/x-h264,stream-format=byte-stream "
        "! filesink name=file buffer-mode=unbuffered sync=false async=false )"
    )
    factory.set_transport_mode(GstRtspServer.RTSPTransportMode.RECORD)
    factory.set_latency(0)
    factory.connect("media-configure", configure)
    server.get_mount_points().add_factory("/live", factory)
    server.attach(None)
    sys.stdout.write(f"port {server.get_bound_port()}\n")
    sys.stdout.flush()
    GLib.MainLoop().run()


if __name__ == "__main__":
    main(*sys.argv[1:])
