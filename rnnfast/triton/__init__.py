"""The Triton kernels: one program for NVIDIA and AMD GPUs, and for the interpreter on the CPU.

Nothing here is imported before the backend ``triton`` is used: ``import rnnfast`` needs no Triton.
"""
