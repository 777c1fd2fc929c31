#include "train/runs/methods.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "train/common/error.h"

namespace kktorch {
namespace {

constexpr const char* kVariants[] = {"softmax", "bn",        "sh",        "bnsh",
                                     "linear",  "linear_bn", "linear_sh", "linear_bnsh"};
constexpr std::string_view kWithoutStd = "-nostd";

bool normalises(std::string_view variant) { return variant.find("bn") != std::string_view::npos; }

}  // namespace

std::vector<std::string> method_names() {
  std::vector<std::string> names(std::begin(kVariants), std::end(kVariants));
  for (const std::string variant : kVariants)
    if (normalises(variant)) names.push_back(variant + std::string(kWithoutStd));
  return names;
}

Method method_named(const std::string& name, EncoderOptions base) {
  const auto known = method_names();
  if (std::find(known.begin(), known.end(), name) == known.end())
    fail("train: expected attentions in {}, but got '{}'", fmt::join(known, ", "), name);
  base.use_std = !name.ends_with(kWithoutStd);
  base.attention = base.use_std ? name : name.substr(0, name.size() - kWithoutStd.size());
  return {name, base};
}

}  // namespace kktorch
