#include "models/token_conv.h"

#include <utility>

namespace kktorch {

namespace F = torch::nn::functional;
using torch::Tensor;

TokenConvImpl::TokenConvImpl(int64_t channels_, std::string kind_, int64_t columns_,
                             int64_t num_special_)
    : channels(channels_), kind(std::move(kind_)), columns(columns_), num_special(num_special_) {
  TokenConvImpl::reset();
}

void TokenConvImpl::reset() {
  const std::vector<int64_t> kernel =
      kind == "1d" ? std::vector<int64_t>{channels, 1, 3} : std::vector<int64_t>{channels, 1, 3, 3};
  const auto identity = torch::zeros(kernel);
  identity.flatten(2).select(2, identity[0].numel() / 2).fill_(1);
  weight = register_parameter("weight", identity);
}

Tensor TokenConvImpl::forward(const Tensor& x, const Tensor& padding_mask, bool is_causal) {
  auto tokens = x;
  if (padding_mask.defined()) {
    tokens = x.masked_fill(padding_mask.unsqueeze(1).unsqueeze(-1), 0);
  }
  if (x.size(2) <= num_special) return tokens;
  auto y = tokens.slice(2, num_special).transpose(2, 3).flatten(1, 2);  // [B, channels, length]
  if (kind == "2d") {
    const auto grid = y.unflatten(2, {y.size(2) / columns, columns});
    const auto same_size = F::Conv2dFuncOptions().padding(1).groups(channels);
    y = F::conv2d(grid, weight, same_size).flatten(2);
  } else if (is_causal) {
    const auto past = torch::constant_pad_nd(y, {2, 0});
    y = F::conv1d(past, weight.roll(1, -1), F::Conv1dFuncOptions().groups(channels));
  } else {
    y = F::conv1d(y, weight, F::Conv1dFuncOptions().padding(1).groups(channels));
  }
  y = y.unflatten(1, {x.size(1), x.size(3)}).transpose(2, 3);
  return num_special == 0 ? y : torch::cat({tokens.slice(2, 0, num_special), y}, 2);
}

void TokenConvImpl::pretty_print(std::ostream& stream) const {
  stream << "kktorch::TokenConv(channels=" << channels << ", kind=" << kind
         << ", columns=" << columns << ", num_special=" << num_special << ")";
}

}  // namespace kktorch
