"""The executor for CUDA GPUs: torch tensors and Triton kernels, equal to the reference to the last bit.

Codes stay on the GPU from unit to unit. Every product is one of integers: bytes through the tensor cores into
32-bit sums (`hwsim.execute.cuda.product_kernels`), all else in 64-bit integers. Floats appear where no rounding
can happen, or where an integer correction follows; each such place says why.

Importing this package imports neither torch nor Triton; `hwsim.execute.cuda.engine` does.
"""
