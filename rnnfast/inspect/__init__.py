"""What the compilers made of the kernels: registers, spills, shared memory, instructions."""
