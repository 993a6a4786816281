"""Exit status 0 while the page's /healthz says that frames move; for a container's HEALTHCHECK. Needs nothing but Python."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request

_URL = os.environ.get("EDGEMASK_HEALTH_URL", "http://127.0.0.1:8080/healthz")
_TIMEOUT_S = 5.0


def main() -> int:
    """Ask once, and print the answer."""
    request = urllib.request.Request(_URL)
    if token := os.environ.get("EDGEMASK_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=_TIMEOUT_S) as answer:
            text, healthy = answer.read(1000), True
    except urllib.error.HTTPError as error:
        with error:
            text, healthy = error.read(1000), False
    except OSError as error:
        text, healthy = str(error).encode(), False
    sys.stdout.write(text.decode(errors="replace").strip() + "\n")
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())
