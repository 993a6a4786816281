"""Cameras that send Motion JPEG over HTTP."""

import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np


def gray_jpeg(height, width):
    """A gray picture as JPEG."""
    return cv2.imencode(".jpg", np.full((height, width, 3), 90, np.uint8))[1].tobytes()


class MotionJpeg(BaseHTTPRequestHandler):
    """A handler whose ``do_GET`` may send pictures."""

    def send_pictures(self, jpeg):
        """Send a picture 20 times a second, until nobody listens."""
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=b")
        self.end_headers()
        try:
            while True:
                self.wfile.write(
                    b"--b\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%b\r\n" % (len(jpeg), jpeg)
                )
                time.sleep(0.05)
        except OSError:
            pass

    def log_message(self, *_):
        pass


@contextmanager
def serving(handler):
    """Answer with it at a free port of this machine; gives "127.0.0.1:PORT"."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
