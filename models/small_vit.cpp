#include "models/small_vit.h"

#include "models/classifier_inputs.h"
#include "models/option_checks.h"

namespace kktorch {
namespace {

using torch::Tensor;

constexpr auto kName = "SmallViT";

void check_options(const SmallViTOptions& o) {
  const std::string expected = "SmallViT: expected ";
  detail::check_positive(expected + "image_height", o.image_height);
  detail::check_positive(expected + "image_width", o.image_width);
  detail::check_positive(expected + "image_channels", o.image_channels);
  detail::check_positive(expected + "patch", o.patch);
  detail::check_positive(expected + "classes", o.classes);
  detail::check_positive(expected + "width", o.encoder.width);
  TORCH_CHECK_VALUE(o.image_height % o.patch == 0 && o.image_width % o.patch == 0, expected,
                    "image_height and image_width divisible by patch, but got ", o.image_height,
                    ", ", o.image_width, " and ", o.patch);
}

/// Images [B, C, height, width] to patches [B, P, C patch^2], row by row.
Tensor patches_of(const Tensor& images, int64_t patch) {
  const auto rows = images.size(2) / patch, columns = images.size(3) / patch;
  return images.unflatten(2, {rows, patch})
      .unflatten(4, {columns, patch})
      .permute({0, 2, 4, 1, 3, 5})
      .flatten(3)
      .flatten(1, 2);
}

}  // namespace

SmallViTImpl::SmallViTImpl(const SmallViTOptions& options_) : options(options_) {
  check_options(options);
  SmallViTImpl::reset();
}

void SmallViTImpl::reset() {
  const auto& o = options;
  const auto width = o.encoder.width;
  const auto rows = o.image_height / o.patch, columns = o.image_width / o.patch;
  input_mean = register_buffer("input_mean", torch::zeros({o.image_channels}));
  input_std = register_buffer("input_std", torch::ones({o.image_channels}));
  embedding =
      register_module("embedding", torch::nn::Linear(o.image_channels * o.patch * o.patch, width));
  class_token = register_parameter("class_token", torch::empty({width}).uniform_(-0.02, 0.02));
  const TokenLayout layout{.length = 1 + rows * columns, .num_special = 1, .conv_columns = columns};
  encoder = register_module("encoder", Encoder(o.encoder, layout));
  norm = register_module("norm", TokenNorm("layer", width));
  head = register_module("head", torch::nn::Linear(width, o.classes));
}

void SmallViTImpl::standardise_with(const Tensor& mean, const Tensor& std) {
  detail::set_standardisation(kName, mean, std, input_mean, input_std);
}

Tensor SmallViTImpl::forward(const Tensor& images) {
  const auto& o = options;
  const std::vector<int64_t> shape{o.image_channels, o.image_height, o.image_width};
  TORCH_CHECK(images.dim() == 4 && images.is_floating_point() && images.sizes().slice(1) == shape,
              "SmallViT: expected images floating [B, ", o.image_channels, ", ", o.image_height,
              ", ", o.image_width, "], but got ", images.scalar_type(), " ", images.sizes());
  const auto per_channel = [](const Tensor& t) { return t.view({-1, 1, 1}); };
  const auto x = (images.to(input_mean.dtype()) - per_channel(input_mean)) / per_channel(input_std);
  const auto tokens = embedding(patches_of(x, o.patch));
  const auto first = class_token.expand({tokens.size(0), 1, -1});
  const auto h = encoder(torch::cat({first, tokens}, 1));
  return head(norm(h.select(1, 0)));
}

void SmallViTImpl::pretty_print(std::ostream& stream) const {
  stream << "kktorch::SmallViT(image_height=" << options.image_height
         << ", image_width=" << options.image_width << ", image_channels=" << options.image_channels
         << ", patch=" << options.patch << ", classes=" << options.classes << ")";
}

}  // namespace kktorch
