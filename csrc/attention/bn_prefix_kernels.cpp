// Built once per instruction-set tier (KKTORCH_TIER): plain loops over channels for the vectoriser.
#include <algorithm>

#include "csrc/attention/bn_formulas.h"
#include "csrc/attention/bn_prefix.h"

namespace kktorch::csrc::KKTORCH_TIER {
namespace {

/// Weighted Welford scan over shifted keys; after advance(p) it holds the moments of the keys j <=
/// p.
template <typename A>
class Scan {
 public:
  Scan(const PrefixHead<A>& head, A* scratch)
      : head_(head), mean_(scratch), m2_(scratch + head.D), scale_(scratch + 2 * head.D) {
    std::fill_n(scratch, 3 * head.D, A{0});
  }

  void advance(int64_t position) {
    const int64_t end = std::min(position + 1, head_.N);
    if (next_ >= end) return;
    for (; next_ < end; ++next_) add(next_);
    for (int64_t d = 0; d < head_.D; ++d)
      scale_[d] = valid_ > 1 ? inverse_variance(m2_[d] / n_, head_.eps, head_.use_std) : A{0};
  }

  A n() const { return n_; }
  const A* mean() const { return mean_; }  // m_i
  const A* scale() const {
    return scale_;
  }  // a_i; 0 up to the first valid key, as in merge_moments

 private:
  void add(int64_t j) {
    const A w = head_.weight ? head_.weight[j] : A{1};
    if (!(w > 0)) return;
    ++valid_;
    n_ += w;
    const A share = w / n_;
    const A *k = head_.key[j], *shift = head_.shift;
    A* __restrict mean = mean_, * __restrict m2 = m2_;
    for (int64_t d = 0; d < head_.D; ++d) {
      const A x = k[d] - shift[d], delta = x - mean[d];
      mean[d] += share * delta;
      m2[d] += w * delta * (x - mean[d]);
    }
  }

  const PrefixHead<A>& head_;
  A *mean_, *m2_, *scale_;
  A n_ = 0;
  int64_t next_ = 0, valid_ = 0;
};

template <typename A>
void shift_keys(const PrefixHead<A>& head, Rows<A> x) {
  for (int64_t j = 0; j < head.N; ++j) {
    if (head.weight && !(head.weight[j] > 0)) {
      std::fill_n(x[j], head.D, A{0});
      continue;
    }
    for (int64_t d = 0; d < head.D; ++d) x[j][d] = head.key[j][d] - head.shift[d];
  }
}

template <typename A>
void prepare_queries(const PrefixHead<A>& head, const Rows<A>* q_tilde, A* scratch) {
  Scan<A> scan(head, scratch);
  for (int64_t i = 0; i < head.M; ++i) {
    scan.advance(head.query_offset + i);
    const A *mean = scan.mean(), *scale = scan.scale();
    for (int64_t g = 0; g < head.G; ++g) {
      const A* q = head.query[g][i];
      A* __restrict out = q_tilde[g][i];
      for (int64_t d = 0; d < head.D; ++d)
        out[d] = shift_query(q[d], head.beta[g], head.shift[d], mean[d]) * scale[d];
    }
  }
}

/// Per row i, summed over the group, with u = a_i dq~_i / n_i:  beta u,  u q~_i,  u q~_i m_i  ([D]
/// each). Their reverse cumulative sums over i are R1, R2, R3 of the key gradient.
template <typename A>
struct RowTerms {
  A *shift, *scale, *scale_mean;
};

template <typename A>
RowTerms<A> row_terms(A* terms, int64_t i, int64_t D) {
  A* row = terms + 3 * i * D;
  return {row, row + D, row + 2 * D};
}

/// dq_i = a_i dq~_i in place, dbeta = -sum a dq~ mu, and the terms of every row.
template <typename A>
void query_gradient(const PrefixHead<A>& head, const Rows<const A>* q_tilde,
                    const Rows<A>* grad_query, A* grad_beta, A* terms, A* scratch) {
  const int64_t D = head.D;
  std::fill_n(terms, 3 * head.M * D, A{0});
  std::fill_n(grad_beta, head.G, A{0});
  Scan<A> scan(head, scratch);
  for (int64_t i = 0; i < head.M; ++i) {
    scan.advance(head.query_offset + i);
    const A *mean = scan.mean(), *scale = scan.scale();
    const A inverse_n = scan.n() > 0 ? 1 / scan.n() : A{0};
    const auto row = row_terms(terms, i, D);
    for (int64_t g = 0; g < head.G; ++g) {
      const A beta = head.beta[g], *q = q_tilde[g][i];
      A *grad = grad_query[g][i], sum = 0;
      for (int64_t d = 0; d < D; ++d) {
        const A dq = scale[d] * grad[d], u = dq * inverse_n;
        grad[d] = dq;
        sum += dq * (head.shift[d] + mean[d]);
        row.shift[d] += beta * u;
        row.scale[d] += u * q[d];
        row.scale_mean[d] += u * q[d] * mean[d];
      }
      grad_beta[g] -= sum;
    }
  }
}

/// dk_j = dx_j - n_j [ R1_j + 2 (x_j R2_j - R3_j) ], R summed over the rows i with p_i >= j.
template <typename A>
void key_gradient(const PrefixHead<A>& head, Rows<const A> x, Rows<A> grad_key, A* terms, A* sums) {
  const int64_t D = head.D;
  std::fill_n(sums, 3 * D, A{0});
  int64_t i = head.M - 1;
  for (int64_t j = head.N - 1; j >= 0; --j) {
    for (; i >= 0 && head.query_offset + i >= j; --i) {
      const A* row = terms + 3 * i * D;
      for (int64_t d = 0; d < 3 * D; ++d) sums[d] += row[d];
    }
    const A w = head.weight ? head.weight[j] : A{1};
    A* grad = grad_key[j];
    if (!(w > 0)) {
      std::fill_n(grad, D, A{0});
      continue;
    }
    const A two = head.use_std ? 2 : 0;
    const A *R1 = sums, *R2 = sums + D, *R3 = sums + 2 * D;
    for (int64_t d = 0; d < D; ++d) grad[d] -= w * (R1[d] + two * (x[j][d] * R2[d] - R3[d]));
  }
}

template <typename A>
void gradient(const PrefixHead<A>& head, Rows<const A> x, const Rows<const A>* q_tilde,
              const Rows<A>* grad_query, Rows<A> grad_key, A* grad_beta, A* scratch) {
  A* terms = scratch + 4 * head.D;
  query_gradient(head, q_tilde, grad_query, grad_beta, terms, scratch);
  key_gradient(head, x, grad_key, terms, scratch);
}

}  // namespace

template <typename T>
PrefixKernels<T> prefix_kernels() {
  return {shift_keys<T>, prepare_queries<T>, gradient<T>};
}
template PrefixKernels<double> prefix_kernels();
template PrefixKernels<float> prefix_kernels();

}  // namespace kktorch::csrc::KKTORCH_TIER
