"""Speed of rnnfast's layers against torch.nn's, side by side in one process.

`python -m benchmarks.run` measures, `python -m benchmarks.report` renders; docs/benchmarks.md
explains both.
"""
