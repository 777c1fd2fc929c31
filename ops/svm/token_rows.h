#pragma once
// Tokens by sets, as the ops of the margin tracker take them: checks, and the view of their
// kernels.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <optional>
#include <string_view>

#include "csrc/svm/tracker.h"

namespace kktorch::detail {

/// x [N, dx] float16, bfloat16, float32 or float64; row_ptr int64 [Q + 1]; tok int64 [nnz] or none.
struct TokenSetTensors {
  std::string_view op;
  const at::Tensor &x, &row_ptr;
  const std::optional<at::Tensor>& tok;

  c10::SymInt queries() const { return row_ptr.sym_size(0) - 1; }
  c10::SymInt entries() const { return tok ? tok->sym_size(0) : x.sym_size(0); }
};

/// Dtypes, shapes and devices; shared with Meta.
void check_token_sets(const TokenSetTensors& sets);

/// `tensor` is int64 [queries] ("alpha") beside `sets`.
void check_selection(const TokenSetTensors& sets, const at::Tensor& alpha);

/// What only the numbers tell, CPU tensors: row_ptr starts at 0, increases strictly (no set is
/// empty) and ends at nnz; tok and alpha are in range.
void check_token_values(const TokenSetTensors& sets, const std::optional<at::Tensor>& alpha);

/// For every entry the query that sees it: int64 [nnz]; and the rows of x that the entries are.
at::Tensor query_of_entries(const TokenSetTensors& sets);
at::Tensor rows_of_entries(const TokenSetTensors& sets);

/// A view for kernels, without z. Tensors must outlive it and be contiguous.
template <typename T>
csrc::TokenSetsView<T> token_sets_view(const at::Tensor& x, const at::Tensor& row_ptr,
                                       const std::optional<at::Tensor>& tok) {
  return {.x = x.const_data_ptr<T>(),
          .z = nullptr,
          .row_ptr = row_ptr.const_data_ptr<int64_t>(),
          .tok = tok ? tok->const_data_ptr<int64_t>() : nullptr,
          .N = x.size(0),
          .dx = x.size(1),
          .Q = row_ptr.size(0) - 1,
          .dz = 0};
}

/// f(first query, last query), in parallel over about equally many entries.
template <typename F>
void for_each_query_range(const at::Tensor& row_ptr, int64_t dx, const F& f) {
  constexpr int64_t kTaskElements = 32768;  // work that is worth a thread
  const int64_t* const begin = row_ptr.const_data_ptr<int64_t>();
  const int64_t queries = row_ptr.size(0) - 1;
  const int64_t grain = std::max<int64_t>(1, kTaskElements / std::max<int64_t>(1, dx));
  at::parallel_for(0, begin[queries], grain, [&](int64_t first, int64_t last) {
    const auto query = [&](int64_t entry) {  // the first query that starts at `entry` or later
      return std::lower_bound(begin, begin + queries, entry) - begin;
    };
    f(query(first), query(last));
  });
}

}  // namespace kktorch::detail
