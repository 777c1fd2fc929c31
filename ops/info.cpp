#include "ops/info.h"

#include <torch/headeronly/version.h>

#include "csrc/common/cpu_tier.h"
#include "ops/attention/backends.h"
#include "ops/attention/normalise.h"

// Found in the file by loaders that must know, before they load it, which torch this library
// belongs to.
extern "C" [[gnu::used]] const char kktorch_built_for_torch[] =
    "kktorch-built-for-torch=" TORCH_VERSION;

namespace kktorch {

BuildInfo build_info() {
  return {.version = KKTORCH_VERSION,
          .torch_version = TORCH_VERSION,
          .compiler = "g++ " __VERSION__,
#ifdef KKTORCH_WITH_CUDA
          .cuda_kernels = true
#else
          .cuda_kernels = false
#endif
  };
}

std::vector<OpPath> op_paths() {
  const std::string tier(csrc::cpu_tier_name());
  const std::string cuda = detail::use_cuda_kernels()
                               ? "kktorch CUDA kernels (experimental) + ATen flash/efficient"
                               : "ATen composition + ATen flash/efficient";
  const std::string kernels = "kktorch kernels (" + tier + ")", composition = "ATen composition";
  const std::string attention = detail::forced_backend() == "stock" ? kernels + " + ATen flash"
                                                                    : "kktorch core (" + tier + ")";
  return {{"attention_bn", attention, cuda},
          {"attention_bn_decode", kernels, composition},
          {"attention_bn_ref", composition, composition},
          {"attention_bn_varlen", "attention_bn, padded", "attention_bn, padded"},
          {"attention_sh", attention, cuda},
          {"attention_sh_ref", composition, composition},
          {"linear_attention", composition, composition},
          {"token_pool", kernels, composition}};
}

}  // namespace kktorch
