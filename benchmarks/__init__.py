"""Measurements, one file a question; each prints a table and can write JSON with the environment it ran in."""
