// Kernels of bn_global_cuda.h. A thread block owns kBnRows rows of one head: threads (c, lane) hold
// channels c, c + C, ... and rows lane, lane + lanes, ...; lanes are added up in shared memory in a
// fixed order.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "csrc/attention/bn_formulas.h"
#include "csrc/attention/bn_global_cuda.h"

namespace kktorch::csrc {
namespace {

template <typename T>
__device__ T* row_of(const DeviceHeads<T>& heads, int64_t b, int64_t h, int64_t row) {
  return heads.data + b * heads.batch_stride + h * heads.head_stride + row * heads.row_stride;
}

struct Range {
  int64_t begin, end;
};

__device__ Range rows_of_block(int64_t block, int64_t rows) {
  const int64_t begin = block * kBnRows;
  return {begin, begin + kBnRows < rows ? begin + kBnRows : rows};
}

/// Sum over the lanes of this channel, for every thread. `shared`: [kBnThreads].
template <typename A>
__device__ A sum_lanes(A value, A* shared) {
  shared[threadIdx.y * blockDim.x + threadIdx.x] = value;
  __syncthreads();
  A sum = 0;
  for (unsigned lane = 0; lane < blockDim.y; ++lane) sum += shared[lane * blockDim.x + threadIdx.x];
  __syncthreads();
  return sum;
}

template <typename A>
__device__ A weight_at(const A* weight, int64_t b, int64_t N, int64_t j) {
  return weight ? weight[b * N + j] : A{1};
}

/// x0 of every key head: first key of positive weight. One thread block per key head.
template <typename T>
__global__ void first_key_kernel(DeviceProblem<T> p, DeviceHeads<const T> key) {
  using A = acc_t<T>;
  const int64_t u = blockIdx.x, b = u / p.shape.Hk, D = p.shape.D, N = p.shape.N;
  __shared__ int64_t first;
  if (threadIdx.x == 0) {
    first = 0;
    while (p.weight && first < N && !(p.weight[b * N + first] > 0)) ++first;
  }
  __syncthreads();
  for (int64_t d = threadIdx.x; d < D; d += blockDim.x)
    p.statistics[u * 3 * D + d] =
        first < N ? static_cast<A>(row_of(key, b, u % p.shape.Hk, first)[d]) : A{0};
}

/// Block moments, two passes over the rows of the block. Grid: key blocks of all key heads.
template <typename T>
__global__ void moments_kernel(DeviceProblem<T> p, DeviceHeads<const T> key) {
  using A = acc_t<T>;
  __shared__ A shared[kBnThreads];
  const int64_t D = p.shape.D, N = p.shape.N;
  const auto [u, block] = bn_unit(blockIdx.x, N);
  const int64_t b = u / p.shape.Hk;
  const auto rows = rows_of_block(block, N);
  A* out = p.workspace + int64_t{blockIdx.x} * (1 + 2 * D);
  for (int64_t base = 0; base < D; base += blockDim.x) {
    const int64_t d = base + threadIdx.x;
    const A shift = d < D ? p.statistics[u * 3 * D + d] : A{0};
    A n = 0, sum = 0;
    for (int64_t j = rows.begin + threadIdx.y; j < rows.end; j += blockDim.y) {
      const A w = weight_at(p.weight, b, N, j);
      if (!(w > 0)) continue;
      n += w;
      if (d < D) sum += w * (static_cast<A>(row_of(key, b, u % p.shape.Hk, j)[d]) - shift);
    }
    n = sum_lanes(n, shared);
    sum = sum_lanes(sum, shared);
    const A mean = n > 0 ? sum / n : A{0};
    A m2 = 0;
    for (int64_t j = rows.begin + threadIdx.y; d < D && j < rows.end; j += blockDim.y) {
      const A w = weight_at(p.weight, b, N, j);
      if (!(w > 0)) continue;
      const A c = (static_cast<A>(row_of(key, b, u % p.shape.Hk, j)[d]) - shift) - mean;
      m2 += w * c * c;
    }
    m2 = sum_lanes(m2, shared);
    if (threadIdx.y == 0 && d < D) {
      out[0] = n;
      out[1 + d] = mean;
      out[1 + D + d] = m2;
    }
  }
}

/// m and r from the block moments, in order. Grid: key heads.
template <typename T>
__global__ void statistics_kernel(DeviceProblem<T> p, int64_t blocks) {
  using A = acc_t<T>;
  const int64_t u = blockIdx.x, b = u / p.shape.Hk, D = p.shape.D, N = p.shape.N;
  __shared__ int64_t valid;  // keys, counted up to 2
  if (threadIdx.x == 0) {
    valid = p.weight ? 0 : N;
    for (int64_t j = 0; p.weight && j < N && valid < 2; ++j) valid += p.weight[b * N + j] > 0;
  }
  __syncthreads();
  for (int64_t d = threadIdx.x; d < D; d += blockDim.x) {
    Moments<A> all{0, 0, 0};
    for (int64_t block = 0; block < blocks; ++block) {
      const A* m = p.workspace + (u * blocks + block) * (1 + 2 * D);
      all = merge(all, Moments<A>{m[0], m[1 + d], m[1 + D + d]});
    }
    A* out = p.statistics + u * 3 * D;
    out[D + d] = all.mean;
    out[2 * D + d] = valid > 1 ? sqrt(inverse_variance(all.m2 / all.n, p.eps, p.use_std)) : A{0};
  }
}

/// c^ for key rows. Grid: key blocks of all key heads.
template <typename T>
__global__ void normalise_keys_kernel(DeviceProblem<T> p, DeviceHeads<const T> key,
                                      DeviceHeads<T> c_hat) {
  using A = acc_t<T>;
  const auto [u, block] = bn_unit(blockIdx.x, p.shape.N);
  const int64_t b = u / p.shape.Hk, h = u % p.shape.Hk, D = p.shape.D;
  const A* statistics = p.statistics + u * 3 * D;
  const auto rows = rows_of_block(block, p.shape.N);
  for (int64_t j = rows.begin + threadIdx.y; j < rows.end; j += blockDim.y) {
    const bool live = weight_at(p.weight, b, p.shape.N, j) > 0;
    const T* k = row_of(key, b, h, j);
    T* c = row_of(c_hat, b, h, j);
    for (int64_t d = threadIdx.x; d < D; d += blockDim.x)
      c[d] = static_cast<T>(live ? ((static_cast<A>(k[d]) - statistics[d]) - statistics[D + d]) *
                                       statistics[2 * D + d]
                                 : A{0});
  }
}

/// q^ for query rows. Grid: query blocks of all query heads.
template <typename T>
__global__ void normalise_queries_kernel(DeviceProblem<T> p, DeviceHeads<const T> query,
                                         DeviceHeads<T> q_hat) {
  using A = acc_t<T>;
  const auto [query_head, block] = bn_unit(blockIdx.x, p.shape.M);
  const int64_t b = query_head / p.shape.H, h = query_head % p.shape.H, D = p.shape.D;
  const int64_t u = b * p.shape.Hk + h / (p.shape.H / p.shape.Hk);
  const A *statistics = p.statistics + u * 3 * D, beta = p.beta[h];
  const auto rows = rows_of_block(block, p.shape.M);
  for (int64_t i = rows.begin + threadIdx.y; i < rows.end; i += blockDim.y) {
    const T* q = row_of(query, b, h, i);
    T* out = row_of(q_hat, b, h, i);
    for (int64_t d = threadIdx.x; d < D; d += blockDim.x)
      out[d] =
          static_cast<T>(shift_query(static_cast<A>(q[d]), beta, statistics[d], statistics[D + d]) *
                         statistics[2 * D + d]);
  }
}

/// Column sums of all query blocks of head (b, h), then one pair of sums per key head behind them.
template <typename T>
__device__ acc_t<T>* sums_at(const DeviceProblem<T>& p, int64_t query_head, int64_t block) {
  return p.workspace + (query_head * bn_blocks(p.shape.M) + block) * 2 * p.shape.D;
}
template <typename T>
__device__ acc_t<T>* group_sums_at(const DeviceProblem<T>& p, int64_t u) {
  return sums_at(p, p.shape.B * p.shape.H, 0) + u * 2 * p.shape.D;
}

/// dq = r dq^ in place and the column sums. Grid: query blocks of all query heads.
template <typename T>
__global__ void query_gradient_kernel(DeviceProblem<T> p, DeviceHeads<const T> q_hat,
                                      DeviceHeads<T> grad) {
  using A = acc_t<T>;
  __shared__ A shared[kBnThreads];
  const auto [query_head, block] = bn_unit(blockIdx.x, p.shape.M);
  const int64_t b = query_head / p.shape.H, h = query_head % p.shape.H, D = p.shape.D;
  const int64_t u = b * p.shape.Hk + h / (p.shape.H / p.shape.Hk);
  const auto rows = rows_of_block(block, p.shape.M);
  A* out = sums_at(p, query_head, block);
  for (int64_t base = 0; base < D; base += blockDim.x) {
    const int64_t d = base + threadIdx.x;
    const A rstd = d < D ? p.statistics[(u * 3 + 2) * D + d] : A{0};
    A shift = 0, scale = 0;
    for (int64_t i = rows.begin + threadIdx.y; d < D && i < rows.end; i += blockDim.y) {
      T* g = row_of(grad, b, h, i) + d;
      const A value = static_cast<A>(*g);
      shift += value;
      scale += value * static_cast<A>(row_of(q_hat, b, h, i)[d]);
      *g = static_cast<T>(rstd * value);
    }
    shift = sum_lanes(shift, shared);
    scale = sum_lanes(scale, shared);
    if (threadIdx.y == 0 && d < D) {
      out[d] = shift;
      out[D + d] = scale;
    }
  }
}

/// Group sums and the gradient of beta, one thread block per key head.
template <typename T>
__global__ void merge_sums_kernel(DeviceProblem<T> p, acc_t<T>* grad_beta) {
  using A = acc_t<T>;
  __shared__ A shared[kBnThreads];
  const int64_t u = blockIdx.x, b = u / p.shape.Hk, D = p.shape.D, G = p.shape.H / p.shape.Hk;
  const int64_t blocks = bn_blocks(p.shape.M);
  const A* statistics = p.statistics + u * 3 * D;
  A* group = group_sums_at(p, u);
  for (int64_t d = threadIdx.x; d < 2 * D; d += blockDim.x) group[d] = 0;
  for (int64_t g = 0; g < G; ++g) {
    const int64_t h = u % p.shape.Hk * G + g;
    A beta_sum = 0;
    for (int64_t d = threadIdx.x; d < D; d += blockDim.x) {
      A shift = 0, scale = 0;
      for (int64_t block = 0; block < blocks; ++block) {
        const A* sums = sums_at(p, b * p.shape.H + h, block);
        shift += sums[d];
        scale += sums[D + d];
      }
      group[d] += p.beta[h] * shift;
      if (p.use_std) group[D + d] += scale;
      beta_sum += (statistics[d] + statistics[D + d]) * statistics[2 * D + d] * shift;
    }
    shared[threadIdx.x] = beta_sum;
    __syncthreads();
    if (threadIdx.x == 0) {
      A sum = 0;
      for (unsigned t = 0; t < blockDim.x; ++t) sum += shared[t];
      grad_beta[b * p.shape.H + h] = -sum;
    }
    __syncthreads();
  }
}

/// dk in place. Grid: key blocks of all key heads.
template <typename T>
__global__ void key_gradient_kernel(DeviceProblem<T> p, DeviceHeads<const T> c_hat,
                                    DeviceHeads<T> grad) {
  using A = acc_t<T>;
  const auto [u, block] = bn_unit(blockIdx.x, p.shape.N);
  const int64_t b = u / p.shape.Hk, h = u % p.shape.Hk, D = p.shape.D, N = p.shape.N;
  const A total = p.weight ? p.total_weight[b] : static_cast<A>(N);
  const A *rstd = p.statistics + (u * 3 + 2) * D, *sums = group_sums_at(p, u);
  const auto rows = rows_of_block(block, N);
  for (int64_t j = rows.begin + threadIdx.y; j < rows.end; j += blockDim.y) {
    const A w = weight_at(p.weight, b, N, j);
    const T* c = row_of(c_hat, b, h, j);
    T* g = row_of(grad, b, h, j);
    for (int64_t d = threadIdx.x; d < D; d += blockDim.x)
      g[d] = static_cast<T>(w > 0 ? key_gradient(static_cast<A>(g[d]), rstd[d], w / total, sums[d],
                                                 sums[D + d], static_cast<A>(c[d]))
                                  : A{0});
  }
}

dim3 threads_for(int64_t D) {
  const auto launch = bn_launch(D);
  return dim3(launch.channels, launch.lanes);
}

unsigned grid_for(int64_t rows, int64_t heads) {
  return static_cast<unsigned>(bn_blocks(rows) * heads);
}

}  // namespace

template <typename T>
cudaError_t launch_bn_forward(const DeviceProblem<T>& p, bool measure, DeviceHeads<const T> query,
                              DeviceHeads<const T> key, DeviceHeads<T> q_hat, DeviceHeads<T> c_hat,
                              cudaStream_t stream) {
  const auto& s = p.shape;
  const dim3 threads = threads_for(s.D);
  const unsigned key_grid = grid_for(s.N, s.B * s.Hk), key_heads = s.B * s.Hk;
  if (measure) {
    first_key_kernel<T><<<key_heads, kBnThreads, 0, stream>>>(p, key);
    moments_kernel<T><<<key_grid, threads, 0, stream>>>(p, key);
    statistics_kernel<T><<<key_heads, kBnThreads, 0, stream>>>(p, bn_blocks(s.N));
  }
  normalise_keys_kernel<T><<<key_grid, threads, 0, stream>>>(p, key, c_hat);
  normalise_queries_kernel<T><<<grid_for(s.M, s.B * s.H), threads, 0, stream>>>(p, query, q_hat);
  return cudaGetLastError();
}

template <typename T>
cudaError_t launch_bn_backward(const DeviceProblem<T>& p, DeviceHeads<const T> q_hat,
                               DeviceHeads<const T> c_hat, DeviceHeads<T> grad_query,
                               DeviceHeads<T> grad_key, acc_t<T>* grad_beta, cudaStream_t stream) {
  const auto& s = p.shape;
  const dim3 threads = threads_for(s.D);
  query_gradient_kernel<T><<<grid_for(s.M, s.B * s.H), threads, 0, stream>>>(p, q_hat, grad_query);
  merge_sums_kernel<T><<<s.B * s.Hk, kBnThreads, 0, stream>>>(p, grad_beta);
  key_gradient_kernel<T><<<grid_for(s.N, s.B * s.Hk), threads, 0, stream>>>(p, c_hat, grad_key);
  return cudaGetLastError();
}

#define INSTANTIATE(T)                                                                             \
  template cudaError_t launch_bn_forward<T>(const DeviceProblem<T>&, bool, DeviceHeads<const T>,   \
                                            DeviceHeads<const T>, DeviceHeads<T>, DeviceHeads<T>,  \
                                            cudaStream_t);                                         \
  template cudaError_t launch_bn_backward<T>(const DeviceProblem<T>&, DeviceHeads<const T>,        \
                                             DeviceHeads<const T>, DeviceHeads<T>, DeviceHeads<T>, \
                                             acc_t<T>*, cudaStream_t);
INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)
#undef INSTANTIATE

}  // namespace kktorch::csrc
