"""Flight recordings run again: whether the masks are the same, where they first differ, and which layer does it."""
