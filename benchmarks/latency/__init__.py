"""What a step of a recurrent layer should cost on a GPU: `python -m benchmarks.latency`.

docs/latency.md explains the model, its constants and how to replace them by measured ones.
"""
