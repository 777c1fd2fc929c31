#pragma once
// KKTORCH_HD marks formulas that CPU and CUDA kernels share. They are always inlined: a copy that
// one instruction-set tier emitted must never serve another.
#ifdef __CUDACC__
#define KKTORCH_HD __host__ __device__ __forceinline__
#else
#define KKTORCH_HD inline __attribute__((always_inline))
#endif
