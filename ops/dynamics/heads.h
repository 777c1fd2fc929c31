#pragma once
// Models of many small heads on the CPU (csrc/dynamics/heads.h): chunks of samples, blocks of
// heads.
//
// A chunk goes through all blocks twice: forward gives the outputs, from these come the weights of
// the samples, and backward adds the weighted gradients. Blocks are spread over the threads and
// share nothing but the outputs, which are summed in the order of the blocks: threads change no
// bit of a result.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "csrc/dynamics/heads.h"

namespace kktorch::detail {

/// Contiguous tensors: tokens [n, T, d], queries [n, Q, d] (or the tokens again), W [H, d, d],
/// U [H, Q, d].
struct HeadProblem {
  at::Tensor tokens, queries, W, U;
  bool rows_of_queries;  ///< scores are y^T W x, else x^T W y
  int64_t chunk_bytes;

  int64_t samples() const { return tokens.size(0); }
  int64_t heads() const { return U.size(0); }
  int64_t num_queries() const { return U.size(1); }
  int64_t width() const { return U.size(2); }
};

/// The bytes that a chunk of samples takes at most, of all that a pass allocates besides copies of
/// the parameters: `chunk_bytes`, and less where the caches hold it; at least one sample.
struct HeadChunks {
  int64_t sample_numbers;  // per sample: p, b, sums, values, slopes and weights of all heads
  int64_t samples;         // of a chunk
};

template <typename A>
HeadChunks head_chunks(const HeadProblem& p, int64_t lanes) {
  constexpr int64_t kCacheBytes = int64_t{1} << 20;
  const int64_t heads = (p.heads() + lanes - 1) / lanes * lanes;
  const int64_t Q = p.num_queries(), T = p.tokens.size(1), d = p.width();
  const int64_t numbers = heads * (2 * Q * T + Q + 3);
  // A chunk reads the parameters and adds to their gradients once: it is worth a multiple of them.
  const int64_t parameter_bytes = heads * d * (d + Q) * static_cast<int64_t>(sizeof(A));
  const int64_t budget = std::min(p.chunk_bytes, std::max(kCacheBytes, 4 * parameter_bytes));
  const int64_t fitting = budget / (numbers * static_cast<int64_t>(sizeof(A)));
  return {numbers, std::clamp<int64_t>(fitting, 1, std::max<int64_t>(1, p.samples()))};
}

/// What a pass with gradients allocates besides its results: packed parameters and gradients, the
/// buffers of a chunk, and the scratch memory of every thread.
template <typename A>
int64_t head_workspace_bytes(const HeadProblem& p) {
  const auto& kernels = csrc::head_kernels<A>();
  const int64_t blocks = (p.heads() + kernels.lanes - 1) / kernels.lanes;
  const int64_t heads = blocks * kernels.lanes, Q = p.num_queries(), d = p.width();
  const auto chunks = head_chunks<A>(p, kernels.lanes);
  const csrc::HeadSamples<A> samples{nullptr, nullptr, p.tokens.size(1), Q, d};
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), blocks);
  const int64_t numbers = 2 * heads * d * (d + Q) + chunks.samples * chunks.sample_numbers +
                          threads * kernels.scratch_size(samples);
  return numbers * static_cast<int64_t>(sizeof(A)) +
         (blocks + 1) * chunks.samples * static_cast<int64_t>(sizeof(double));
}

template <typename A>
class HeadPasses {
 public:
  explicit HeadPasses(const HeadProblem& problem)
      : problem_(problem),
        samples_{problem.tokens.const_data_ptr<A>(), problem.queries.const_data_ptr<A>(),
                 problem.tokens.size(1), problem.num_queries(), problem.width()},
        chunks_(head_chunks<A>(problem, lanes())),
        blocks_((problem.heads() + lanes() - 1) / lanes()),
        W_(packed(problem.W, weight_layout())),
        U_(packed(problem.U, value_layout())) {}

  int64_t lanes() const { return kernels_.lanes; }
  int64_t blocks() const { return blocks_; }
  int64_t heads_of(int64_t block) const {
    return std::min(lanes(), problem_.heads() - block * lanes());
  }

  /// Outputs, and gradients where `weigh` is more than a null pointer.
  /// @param model  value(block, sums, count, values, slopes, partial): from the sums [count, Q,
  ///     lanes] what backward needs, [count, lanes] each, and the block's share of the outputs;
  ///     weights(block, r, count, values, slopes, weights): d output / d sum times r, [count,
  ///     lanes].
  /// @param weigh  weigh(first, count, outputs, r): the weights r of samples from their outputs.
  template <typename Model, typename Weigh>
  void run(Model& model, double* outputs, const Weigh& weigh) {
    constexpr bool kGradients = !std::is_null_pointer_v<Weigh>;
    if constexpr (kGradients) {
      gW_ = at::zeros_like(W_);
      gU_ = at::zeros_like(U_);
    }
    allocate(kGradients);
    for (int64_t first = 0; first < problem_.samples(); first += chunks_.samples) {
      const int64_t count = std::min(chunks_.samples, problem_.samples() - first);
      std::vector<double> partial(blocks_ * count);
      for_blocks(count, [&](int64_t block, A* scratch) {
        A* const sums = chunk(sums_, block);
        kernels_.forward(samples_, first, first + count, at_block(W_, block), at_block(U_, block),
                         chunk(attended_, block), attended_stride_, sums, scratch);
        model.value(block, sums, count, chunk(values_, block), chunk(slopes_, block),
                    partial.data() + block * count);
      });
      for (int64_t i = 0; i < count; ++i) {
        double sum = 0;
        for (int64_t block = 0; block < blocks_; ++block) sum += partial[block * count + i];
        outputs[first + i] = model.scale() * sum;
      }
      if constexpr (kGradients) {
        std::vector<double> r(count);
        weigh(first, count, outputs + first, r.data());
        for_blocks(count, [&](int64_t block, A* scratch) {
          A* const weights = chunk(sums_, block);  // the sums have been used
          model.weights(block, r.data(), count, chunk(values_, block), chunk(slopes_, block),
                        weights);
          kernels_.backward(samples_, first, first + count, chunk(attended_, block),
                            attended_stride_, weights, at_block(gW_, block), at_block(gU_, block),
                            scratch);
        });
      }
    }
  }

  at::Tensor weight_gradient() const { return unpacked(gW_, problem_.W, weight_layout()); }
  at::Tensor value_gradient() const { return unpacked(gU_, problem_.U, value_layout()); }

  /// f(block, sample, sums [Q, lanes], z, g [Q, d, lanes]) for all blocks and samples; a block
  /// is one task.
  template <typename F>
  void features(const F& f) const {
    const int64_t sample = samples_.num_queries * lanes();
    for_blocks(problem_.samples(), [&](int64_t block, A* scratch) {
      const auto buffer = at::empty({sample * (2 * samples_.length + 1 + 2 * samples_.width)},
                                    problem_.W.options());
      A* const sums = buffer.template mutable_data_ptr<A>();
      A* const attended = sums + sample;
      A* const z = attended + 2 * sample * samples_.length;
      A* const g = z + sample * samples_.width;
      for (int64_t i = 0; i < problem_.samples(); ++i) {
        kernels_.forward(samples_, i, i + 1, at_block(W_, block), at_block(U_, block), attended, 0,
                         sums, scratch);
        kernels_.features(samples_, i, attended, z, g);
        f(block, i, sums, z, g);
      }
    });
  }

 private:
  csrc::HeadLayout weight_layout() const {
    const int64_t d = problem_.width();
    return problem_.rows_of_queries ? csrc::HeadLayout{d, d, d * d, d, 1}
                                    : csrc::HeadLayout{d, d, d * d, 1, d};
  }
  csrc::HeadLayout value_layout() const {
    const int64_t d = problem_.width(), Q = problem_.num_queries();
    return {Q, d, Q * d, d, 1};
  }

  static A* at_block(const at::Tensor& packed, int64_t block) {
    return packed.mutable_data_ptr<A>() + block * packed.stride(0);
  }

  at::Tensor packed(const at::Tensor& parameter, const csrc::HeadLayout& layout) const {
    const auto blocks =
        at::empty({blocks_, layout.rows * layout.columns * lanes()}, parameter.options());
    at::parallel_for(0, blocks_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block)
        kernels_.pack(parameter.const_data_ptr<A>() + block * lanes() * layout.head_stride, layout,
                      heads_of(block), at_block(blocks, block));
    });
    return blocks;
  }

  at::Tensor unpacked(const at::Tensor& blocks, const at::Tensor& like,
                      const csrc::HeadLayout& layout) const {
    const auto result = at::empty(like.sizes(), like.options());
    at::parallel_for(0, blocks_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block)
        kernels_.unpack(at_block(blocks, block), layout, heads_of(block),
                        result.mutable_data_ptr<A>() + block * lanes() * layout.head_stride);
    });
    return result;
  }

  /// The buffers of a chunk; without gradients p and b are not kept.
  void allocate(bool gradients) {
    const int64_t Q = samples_.num_queries, entries = 2 * Q * samples_.length * lanes();
    const auto numbers = [&](int64_t per_block) {
      return at::empty({blocks_, per_block}, problem_.W.options());
    };
    attended_stride_ = gradients ? entries : 0;
    attended_ = numbers(gradients ? chunks_.samples * entries : entries);
    sums_ = numbers(chunks_.samples * Q * lanes());
    values_ = numbers(chunks_.samples * lanes());
    slopes_ = numbers(chunks_.samples * lanes());
  }

  A* chunk(const at::Tensor& buffer, int64_t block) const { return at_block(buffer, block); }

  template <typename F>
  void for_blocks(int64_t count, const F& f) const {
    constexpr int64_t kTaskNumbers = 8192;  // work that is worth a thread
    const int64_t work =
        count * samples_.num_queries * samples_.width * (samples_.width + 4 * samples_.length);
    const int64_t grain = std::max<int64_t>(1, kTaskNumbers / std::max<int64_t>(1, work));
    at::parallel_for(0, blocks_, grain, [&](int64_t begin, int64_t end) {
      const auto scratch = at::empty({kernels_.scratch_size(samples_)}, problem_.W.options());
      for (int64_t block = begin; block < end; ++block)
        f(block, scratch.template mutable_data_ptr<A>());
    });
  }

  const csrc::HeadKernels<A>& kernels_ = csrc::head_kernels<A>();
  const HeadProblem& problem_;
  const csrc::HeadSamples<A> samples_;
  const HeadChunks chunks_;
  const int64_t blocks_;
  at::Tensor W_, U_, gW_, gU_, attended_, sums_, values_, slopes_;
  int64_t attended_stride_ = 0;
};

}  // namespace kktorch::detail
