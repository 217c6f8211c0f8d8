"""A machine with a GPU is checked by `python3 benchmarks/gpu_check/first.py`, or `make gpu-check`.

docs/gpu-check.md says what it does and how to read what it writes.
"""
