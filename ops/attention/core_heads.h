#pragma once
// One head of a problem on the attention core: its scratch memory, and the steps of its backward
// pass in the order in which a head has to take them.
#include <memory>
#include <new>

#include "csrc/attention/core/core.h"
#include "ops/attention/head_passes.h"

namespace kktorch::detail {

/// Scratch memory of this thread, aligned to cache lines. It is kept from call to call, because
/// fresh memory costs a page fault every 4 KB, unless it is large.
class ThreadScratch {
 public:
  explicit ThreadScratch(int64_t size) {
    constexpr int64_t kKept = int64_t{1} << 24;
    thread_local Memory kept;
    thread_local int64_t kept_size = 0;
    if (size > kKept) {
      own_ = allocate(size);
    } else if (size > kept_size) {
      kept = allocate(size);
      kept_size = size;
    }
    data_ = own_ ? own_.get() : kept.get();
  }

  std::byte* data() const { return data_; }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Delete {
    void operator()(std::byte* memory) const { ::operator delete[](memory, kLine); }
  };
  using Memory = std::unique_ptr<std::byte[], Delete>;

  static Memory allocate(int64_t size) {
    return Memory(static_cast<std::byte*>(::operator new[](size, kLine)));
  }

  Memory own_;
  std::byte* data_;
};

/// The problem as the kernels read it.
template <typename T>
csrc::CoreProblem<T> core_problem(const AttentionProblem& p, const at::Tensor& statistics,
                                  const csrc::LogitMask<csrc::acc_t<T>>& mask) {
  using A = csrc::acc_t<T>;
  return {.B = p.B(),
          .H = p.H(),
          .Hk = p.Hk(),
          .M = p.M(),
          .N = p.N(),
          .D = p.D(),
          .Dv = p.Dv(),
          .query = head_rows<T>(p.query),
          .key = head_rows<T>(p.key),
          .value = head_rows<T>(p.value),
          .statistics = mutable_head_rows<A>(statistics),
          .beta = p.beta.const_data_ptr<A>(),
          .scale = static_cast<A>(p.scale),
          .weight = p.key_weight.defined() ? p.key_weight.const_data_ptr<A>() : nullptr,
          .mask = mask,
          .is_causal = p.is_causal,
          .query_offset = p.query_offset,
          .split_floats =
              at::globalContext().float32MatmulPrecision() != at::Float32MatmulPrecision::HIGHEST};
}

/// Cuts [0, size) into `parts` blocks of nearly equal size.
inline csrc::Block part_of(int64_t part, int64_t parts, int64_t size) {
  return {part * size / parts, (part + 1) * size / parts};
}

/// Backward of one key head, in steps that a head has to take one after the other.
template <typename T>
class HeadBackward {
  using A = csrc::acc_t<T>;

 public:
  /// parts: of the keys, each with its own summand of the gradient of q^; total_weight: [B] sums of
  /// the key weights, or null where every key weighs 1.
  HeadBackward(const HeadViews<T>& view, const csrc::CoreProblem<T>& problem,
               const csrc::CoreGradients<T>& gradients, int64_t parts, const A* total_weight,
               A* grad_beta /* [B, H] */)
      : view_(view),
        problem_(problem),
        gradients_(gradients),
        parts_(parts),
        total_(total_weight),
        grad_beta_(grad_beta) {}

  int64_t query_blocks() const { return view_.G() * blocks_of(view_.M); }
  int64_t key_blocks() const { return blocks_of(view_.N); }

  /// Values of accumulators that a head needs, from step to step.
  int64_t sums_size() const {
    return parts_ * query_size() + view_.N * view_.D + (query_blocks() + 1) * 2 * view_.D;
  }

  /// The keys of one part: gradients of their values and of c, and a summand of that of q^.
  void attend(int64_t u, int64_t part, A* sums, void* scratch) const {
    kernels_.backward(problem_, gradients_, u / view_.Hk, u % view_.Hk,
                      part_of(part, parts_, view_.N), sums + part * query_size(), key_sums(sums),
                      scratch);
  }

  /// All steps of a head. sums: [sums_size()].
  void run(int64_t u, A* sums, void* scratch) const {
    for (int64_t i = 0; i < parts_; ++i) attend(u, i, sums, scratch);
    for (int64_t i = 0; i < query_blocks(); ++i) finish_queries(u, i, sums);
    merge(u, sums);
    for (int64_t i = 0; i < key_blocks(); ++i) finish_keys(u, i, sums);
  }

  void finish_queries(int64_t u, int64_t block, A* sums) const {
    const int64_t M = view_.M, blocks = blocks_of(M), g = block / blocks;
    const auto rows = block_at(block % blocks, M);
    A* out = column_sums(sums, block);
    kernels_.finish_queries(problem_, gradients_, u / view_.Hk, view_.query_head(u, g), rows,
                            sums + (g * M + rows.begin) * view_.D, parts_, query_size(),
                            {out, out + view_.D});
  }

  void merge(int64_t u, A* sums) const {
    merge_query_sums(view_, u, column_sums(sums, 0), blocks_of(view_.M),
                     column_sums(sums, query_blocks()), grad_beta_ + u * view_.G());
  }

  void finish_keys(int64_t u, int64_t block, A* sums) const {
    const int64_t N = view_.N, b = u / view_.Hk;
    const auto rows = block_at(block, N);
    const A* group = column_sums(sums, query_blocks());
    const A total = total_ ? total_[b] : static_cast<A>(N);
    kernels_.finish_keys(problem_, gradients_, b, u % view_.Hk, rows,
                         key_sums(sums) + rows.begin * view_.D, total,
                         {const_cast<A*>(group), const_cast<A*>(group) + view_.D});
  }

 private:
  int64_t query_size() const { return view_.G() * view_.M * view_.D; }
  A* key_sums(A* sums) const { return sums + parts_ * query_size(); }
  /// Of a block of queries; behind the last one, those of the group.
  A* column_sums(A* sums, int64_t block) const {
    return key_sums(sums) + (view_.N + block * 2) * view_.D;
  }

  const HeadViews<T>& view_;
  const csrc::CoreProblem<T>& problem_;
  const csrc::CoreGradients<T>& gradients_;
  const csrc::CoreKernels<T>& kernels_ = csrc::core_kernels<T>();
  int64_t parts_;
  const A* total_;
  A* grad_beta_;
};

}  // namespace kktorch::detail
