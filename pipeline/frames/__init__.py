"""Frames: the record that travels through a run, its pixel formats, and NV12.

Imports only `pipeline.errors`; everyone may call it.
"""
