"""Calibration sets: frames chosen from pictures and videos, written, read again, and shown."""
