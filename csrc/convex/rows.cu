// Kernels of rows_cuda.h. Lane i of a warp holds entries i, i + 32, ... of its row; lanes are added
// up in a fixed order.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "csrc/convex/rows_cuda.h"

namespace kktorch::csrc {
namespace {

constexpr int kWarp = 32, kRowsOfBlock = 8;
constexpr unsigned kAll = 0xffffffffu;

__device__ double sum_of_warp(double value) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(kAll, value, lanes);
  return value;
}

__device__ double max_of_warp(double value) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2)
    value = fmax(value, __shfl_xor_sync(kAll, value, lanes));
  return value;
}

__device__ int64_t row_of_warp() { return int64_t{blockIdx.x} * kRowsOfBlock + threadIdx.y; }

/// Newton's method on the threshold from the left, as in rows.h.
template <typename T>
__global__ void simplex_project_kernel(const T* v, int64_t rows, int64_t size, double radius,
                                       T* w) {
  using A = acc_t<T>;
  const int64_t row = row_of_warp();
  if (row >= rows) return;
  const T* from = v + row * size;
  T* to = w + row * size;
  double top = -INFINITY;
  bool strange = false;
  for (int64_t k = threadIdx.x; k < size; k += kWarp) {
    const double x = static_cast<A>(from[k]);
    top = fmax(top, x);
    strange |= !(x < INFINITY);  // NaN too
  }
  top = max_of_warp(top);
  if (__any_sync(kAll, strange) || top == -INFINITY) {
    for (int64_t k = threadIdx.x; k < size; k += kWarp) to[k] = static_cast<T>(static_cast<A>(NAN));
    return;
  }
  double tau = -radius, count = static_cast<double>(size) + 1;
  while (true) {
    double sum = 0, above = 0;
    for (int64_t k = threadIdx.x; k < size; k += kWarp) {
      const double y = static_cast<double>(static_cast<A>(from[k])) - top;
      if (y > tau) {
        sum += y;
        ++above;
      }
    }
    sum = sum_of_warp(sum);
    above = sum_of_warp(above);
    const double next = (sum - radius) / above;
    // Only a strictly smaller set goes on: with rounding, equal ones could cycle.
    if (!(above < count) || above == 0 || !(next > tau)) break;
    tau = next;
    count = above;
  }
  for (int64_t k = threadIdx.x; k < size; k += kWarp) {
    const double above = static_cast<double>(static_cast<A>(from[k])) - top - tau;
    to[k] = static_cast<T>(static_cast<A>(above > 0 ? above : 0));
  }
}

template <typename T>
__global__ void group_shrink_kernel(const T* u, const double* tau, int64_t tau_stride, int64_t rows,
                                    int64_t size, T* z) {
  using A = acc_t<T>;
  const int64_t row = row_of_warp();
  if (row >= rows) return;
  const T* from = u + row * size;
  double square = 0;
  for (int64_t k = threadIdx.x; k < size; k += kWarp) {
    const double x = static_cast<A>(from[k]);
    square += x * x;
  }
  const double norm = sqrt(sum_of_warp(square)), t = tau[row * tau_stride];
  // NaN is not below the threshold, and shows.
  const A factor = norm <= t ? A(0) : static_cast<A>(1 - t / norm);
  for (int64_t k = threadIdx.x; k < size; k += kWarp)
    z[row * size + k] = static_cast<T>(norm <= t ? A(0) : factor * static_cast<A>(from[k]));
}

dim3 threads() { return dim3(kWarp, kRowsOfBlock); }

unsigned blocks_of(int64_t rows) {
  return static_cast<unsigned>((rows + kRowsOfBlock - 1) / kRowsOfBlock);
}

}  // namespace

template <typename T>
cudaError_t launch_simplex_project(const T* v, int64_t rows, int64_t size, double radius, T* w,
                                   cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  simplex_project_kernel<<<blocks_of(rows), threads(), 0, stream>>>(v, rows, size, radius, w);
  return cudaGetLastError();
}

template <typename T>
cudaError_t launch_group_shrink(const T* u, const double* tau, int64_t tau_stride, int64_t rows,
                                int64_t size, T* z, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  group_shrink_kernel<<<blocks_of(rows), threads(), 0, stream>>>(u, tau, tau_stride, rows, size, z);
  return cudaGetLastError();
}

#define INSTANTIATE(T)                                                                            \
  template cudaError_t launch_simplex_project<T>(const T*, int64_t, int64_t, double, T*,          \
                                                 cudaStream_t);                                   \
  template cudaError_t launch_group_shrink<T>(const T*, const double*, int64_t, int64_t, int64_t, \
                                              T*, cudaStream_t);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)
#undef INSTANTIATE

}  // namespace kktorch::csrc
