#pragma once
// Depth-wise convolution over the tokens of attention heads: convolution attention applies one to
// the queries and one to the keys.
#include <torch/torch.h>

#include <string>

namespace kktorch {

/// One kernel w per head and channel, without bias, initially the identity. Zeros stand in for
/// tokens that do not exist; the first num_special tokens pass unchanged and are seen by no other.
///
/// "1d"  y_t = w_0 x_{t-1} + w_1 x_t + w_2 x_{t+1}. Causal: the tap of the next token falls two
///       back, y_t = w_2 x_{t-2} + w_0 x_{t-1} + w_1 x_t, so that the initial kernel is the
///       identity there, too.
/// "2d"  3 x 3 on the grid of the tokens in rows of `columns`.
///
/// Parameter weight [heads width, 1, 3] or [heads width, 1, 3, 3], as in nn.Conv1d and nn.Conv2d
/// with as many groups as channels.
class TokenConvImpl : public torch::nn::Cloneable<TokenConvImpl> {
 public:
  TokenConvImpl(int64_t channels, std::string kind, int64_t columns, int64_t num_special);

  void reset() override;

  /// @param x             [B, heads, L, width]; "2d": L - num_special is a multiple of columns.
  /// @param padding_mask  bool [B, L], True = padding, counted as zeros whatever stands there.
  /// @param is_causal     "1d" only.
  /// @return              y, shape of x.
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& padding_mask = {},
                        bool is_causal = false);

  void pretty_print(std::ostream& stream) const override;

  int64_t channels;
  std::string kind;
  int64_t columns, num_special;
  torch::Tensor weight;
};
TORCH_MODULE(TokenConv);

}  // namespace kktorch
