"""Measurements of t2ikit against plain reference paths and peers: ``python -m benchmarks``. Not installed."""
