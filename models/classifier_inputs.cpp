#include "models/classifier_inputs.h"

namespace kktorch::detail {

using torch::Tensor;

void check_padding_mask(std::string_view module, const Tensor& padding_mask, const Tensor& tokens) {
  const auto shape = tokens.sizes().slice(0, 2);
  TORCH_CHECK(!padding_mask.defined() ||
                  (padding_mask.scalar_type() == torch::kBool && padding_mask.sizes() == shape),
              module, ": expected padding_mask bool ", shape, ", but got ",
              padding_mask.scalar_type(), " ", padding_mask.sizes());
}

void set_standardisation(std::string_view module, const Tensor& mean, const Tensor& std,
                         Tensor& input_mean, Tensor& input_std) {
  TORCH_CHECK(mean.sizes() == input_mean.sizes() && std.sizes() == input_std.sizes(), module,
              ": expected mean and std of shape ", input_mean.sizes(), ", but got ", mean.sizes(),
              " and ", std.sizes());
  TORCH_CHECK_VALUE(mean.isfinite().all().item<bool>() && std.isfinite().all().item<bool>() &&
                        (std >= 0).all().item<bool>(),
                    module, ": expected finite mean and std >= 0, but got ", mean, " and ", std);
  torch::NoGradGuard no_grad;
  input_mean.copy_(mean);
  input_std.copy_(std.masked_fill(std == 0, 1));
}

}  // namespace kktorch::detail
