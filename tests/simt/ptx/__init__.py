"""Running the PTX that nvcc emits on the executor's fibers (docs/ptx.md)."""
