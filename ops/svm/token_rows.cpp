#include "ops/svm/token_rows.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>

namespace kktorch::detail {

void check_token_sets(const TokenSetTensors& s) {
  const auto type = s.x.scalar_type();
  TORCH_CHECK(s.x.dim() == 2 && (type == at::kDouble || type == at::kFloat || type == at::kHalf ||
                                 type == at::kBFloat16),
              s.op,
              ": expected x of shape [N, dx] and a dtype in {float16, bfloat16, float32, float64}, "
              "but got ",
              type, " ", s.x.sym_sizes());
  TORCH_CHECK(s.row_ptr.dim() == 1 && s.row_ptr.sym_size(0) >= 1 &&
                  s.row_ptr.scalar_type() == at::kLong && s.row_ptr.device() == s.x.device(),
              s.op, ": expected row_ptr int64 [Q + 1] on ", s.x.device(), ", but got ",
              s.row_ptr.scalar_type(), " ", s.row_ptr.sym_sizes(), " on ", s.row_ptr.device());
  if (s.tok)
    TORCH_CHECK(
        s.tok->dim() == 1 && s.tok->scalar_type() == at::kLong && s.tok->device() == s.x.device(),
        s.op, ": expected tok int64 [nnz] on ", s.x.device(), ", but got ", s.tok->scalar_type(),
        " ", s.tok->sym_sizes(), " on ", s.tok->device());
}

void check_selection(const TokenSetTensors& s, const at::Tensor& alpha) {
  TORCH_CHECK(alpha.dim() == 1 && alpha.sym_size(0) == s.queries() &&
                  alpha.scalar_type() == at::kLong && alpha.device() == s.x.device(),
              s.op, ": expected alpha int64 [", s.queries(), "] on ", s.x.device(), ", but got ",
              alpha.scalar_type(), " ", alpha.sym_sizes(), " on ", alpha.device());
}

void check_token_values(const TokenSetTensors& s, const std::optional<at::Tensor>& alpha) {
  const auto pointers = s.row_ptr.contiguous();
  const int64_t* const begin = pointers.const_data_ptr<int64_t>();
  const int64_t queries = pointers.size(0) - 1, entries = s.entries().expect_int();
  TORCH_CHECK(begin[0] == 0 && begin[queries] == entries, s.op,
              ": expected row_ptr from 0 to nnz = ", entries, ", but got ", begin[0], " to ",
              begin[queries]);
  for (int64_t q = 0; q < queries; ++q)
    TORCH_CHECK(begin[q] < begin[q + 1], s.op,
                ": expected sets of at least one token (row_ptr increases), but got row_ptr ",
                begin[q], " and ", begin[q + 1], " for query ", q);
  if (s.tok) {
    const auto rows = s.tok->contiguous();
    const int64_t* const row = rows.const_data_ptr<int64_t>();
    for (int64_t k = 0; k < entries; ++k)
      TORCH_CHECK(0 <= row[k] && row[k] < s.x.size(0), s.op, ": expected tok in 0 ... ",
                  s.x.size(0) - 1, ", but got ", row[k], " at ", k);
  }
  if (!alpha) return;
  const auto selected = alpha->contiguous();
  const int64_t* const position = selected.const_data_ptr<int64_t>();
  for (int64_t q = 0; q < queries; ++q)
    TORCH_CHECK(0 <= position[q] && position[q] < begin[q + 1] - begin[q], s.op,
                ": expected alpha in 0 ... ", begin[q + 1] - begin[q] - 1, " for query ", q,
                ", but got ", position[q]);
}

at::Tensor query_of_entries(const TokenSetTensors& s) {
  const int64_t queries = s.queries().expect_int();
  const auto sizes = s.row_ptr.slice(0, 1) - s.row_ptr.slice(0, 0, queries);
  return at::arange(queries, s.row_ptr.options())
      .repeat_interleave(sizes, 0, s.entries().expect_int());
}

at::Tensor rows_of_entries(const TokenSetTensors& s) {
  return s.tok ? s.x.index_select(0, *s.tok) : s.x;
}

}  // namespace kktorch::detail
