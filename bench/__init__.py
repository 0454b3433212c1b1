"""Reproducible measurements. A module here is a bench: its first line is the title, `run()` its entry.

What benches are made with is in `bench.kit`.
"""
