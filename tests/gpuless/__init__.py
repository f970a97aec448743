"""GPU kernels proved on a machine without a GPU: compiled for real, then executed or inspected on the CPU.

`emulator` runs compiled sm_80 PTX with numpy and checks every memory access; `drivers` lets `kernel[grid](...)` take
CPU tensors, compile, and run there; `offline` compiles for any target and reads registers, spills and instructions
from the machine code; `interpreter` runs the same kernels uncompiled, with bfloat16 computed correctly. Of kernels in
CUDA C++, `shim` runs the source under g++ and its sanitizers, and `nvcc` compiles it for `emulator` and for all GPUs.
Nothing here measures speed, and none of it replaces a run on the device.
"""
