"""Tests of the Triton kernels in Triton's interpreter, on CPU tensors.

Collected under ``TRITON_INTERPRET=1`` only, which has to be set before Triton's kernels are made:
tests/triton/test_interpreted.py starts processes for them.
"""
