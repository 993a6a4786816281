"""A real RTSP server with a test picture, for /usr/bin/python3 with GStreamer's bindings: rtsp_server.py [--port N] …

Prints the port that it listens on, as one line, then serves rtsp://127.0.0.1:PORT/test until it is killed.
"""

import argparse
import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402 - a version is named before what it is the version of


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--size", default="160x120")
    parser.add_argument("--fps", type=int, default=30)
    parser.add_argument("--pattern", default="smpte")
    parser.add_argument(
        "--encoder", default="x264enc tune=zerolatency speed-preset=ultrafast sliced-threads=false key-int-max=15"
    )
    parser.add_argument(
        "--headers", type=int, default=1, help="seconds between parameter sets; -1: before each key slice"
    )
    parser.add_argument("--user")
    parser.add_argument("--password")
    options = parser.parse_args()
    Gst.init(None)
    width, height = options.size.split("x")
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(str(options.port))
    payloader = "rtpjpegpay" if "jpeg" in options.encoder else f"rtph264pay config-interval={options.headers}"
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(
        f"( videotestsrc is-live=true pattern={options.pattern} ! "
        f"video/x-raw,format=I420,width={width},height={height},framerate={options.fps}/1 ! "
        f"{options.encoder} ! {payloader} name=pay0 pt=96 )"
    )
    factory.set_shared(True)
    if options.user:
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", "viewer")
        auth = GstRtspServer.RTSPAuth()
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(options.user, options.password), token)
        server.set_auth(auth)
        permissions = GstRtspServer.RTSPPermissions()
        permissions.add_permission_for_role("viewer", "media.factory.access", True)
        permissions.add_permission_for_role("viewer", "media.factory.construct", True)
        factory.set_permissions(permissions)
    server.get_mount_points().add_factory("/test", factory)
    if not server.attach(None):
        sys.exit(f"port {options.port} is taken")
    sys.stdout.write(f"{server.get_bound_port()}\n")
    sys.stdout.flush()
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
