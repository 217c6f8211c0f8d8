"""One command for a machine with a GPU: `make gpu-check`, or `python -m benchmarks.gpu_check`.

docs/gpu-check.md says what it does and how to read what it writes.
"""
