"""Bundles: the manifest, the program, the plans, and folders that appear whole or not at all. Both halves call it."""
