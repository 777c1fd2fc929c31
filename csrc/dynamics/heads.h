#pragma once
// Attention of many small heads that share their tokens, head by head in the lanes of a vector:
// multi-head gradient descent (arXiv 2310.12680) and shallow transformers (arXiv 2601.16514).
//
//     z_q = sum_s p_qs x_s        p_q. = softmax_s(x_s^T W^T y_q)        st_q = <u_q, z_q>
//     g_q = Cov_q u_q = sum_s b_qs x_s        b_qs = p_qs (<x_s, u_q> - st_q)
//
// for the queries y_1 ... y_Q of a sample with tokens x_1 ... x_T in R^d. Gradients of sum_q st_q:
// z_q in u_q, and sum_q y_q g_q^T in W. Torch-free.
//
// A block holds as many heads as a vector has lanes. Its parameters and gradients are packed with
// the heads last: W [d, d, lanes] (row: of y), U [Q, d, lanes]. Heads that fill the last block up
// are zero. Blocks are independent of each other, so that threads change no result.
#include <cstdint>

namespace kktorch::csrc {

/// Tokens [n, T, d] and queries [n, Q, d], contiguous; queries may be the tokens.
template <typename T>
struct HeadSamples {
  const T *tokens, *queries;
  int64_t length, num_queries, width;  // T, Q, d
};

/// Where the heads of a block lie in a parameter: element (head, row, column) at
/// head * head_stride + row * row_stride + column * column_stride.
struct HeadLayout {
  int64_t rows, columns, head_stride, row_stride, column_stride;
};

enum class Activation { kTanh, kSigmoid, kIdentity };

template <typename T>
struct HeadKernels {
  int64_t lanes;

  /// Numbers of scratch memory that forward, backward and features need.
  int64_t (*scratch_size)(const HeadSamples<T>& samples);

  /// Between a parameter and its packed block of `heads` <= lanes heads; pack fills up with zeros.
  void (*pack)(const T* parameter, const HeadLayout& layout, int64_t heads, T* block);
  void (*unpack)(const T* block, const HeadLayout& layout, int64_t heads, T* parameter);

  /// Samples [first, last) of one block: p and b to attended [2, Q, T, lanes], `attended_stride`
  /// numbers further for the next sample (0: they are not kept), and st to sums [Q, lanes].
  void (*forward)(const HeadSamples<T>& samples, int64_t first, int64_t last, const T* W,
                  const T* U, T* attended, int64_t attended_stride, T* sums, T* scratch);

  /// Adds the gradients of sum_i weight_i sum_q st_iq, weights [last - first, lanes], to gW and gU.
  void (*backward)(const HeadSamples<T>& samples, int64_t first, int64_t last, const T* attended,
                   int64_t attended_stride, const T* weights, T* gW, T* gU, T* scratch);

  /// z and g of sample `index`, [Q, d, lanes] each, from its attended.
  void (*features)(const HeadSamples<T>& samples, int64_t index, const T* attended, T* z, T* g);

  /// h = sigma(s) and its derivative, `count` numbers (whole vectors).
  void (*activate)(Activation activation, const T* s, int64_t count, T* h, T* derivative);
};

/// The table of the CPU tier in use; T is double or float.
template <typename T>
const HeadKernels<T>& head_kernels();

}  // namespace kktorch::csrc
