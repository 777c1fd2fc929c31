#include "csrc/common/cpu_tier.h"

#include <array>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace kktorch::csrc {
namespace {

constexpr std::array<std::string_view, 4> kNames = {"generic", "avx2", "avx512", "avx512_bf16"};

CpuTier best_of_machine() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return __builtin_cpu_supports("avx512bf16") ? CpuTier::kAvx512Bf16 : CpuTier::kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return CpuTier::kAvx2;
#endif
  return CpuTier::kGeneric;
}

CpuTier choose() {
  const CpuTier best = best_of_machine();
  const char* forced = std::getenv("KKTORCH_CPU_CAPABILITY");
  if (!forced || !*forced) return best;
  for (size_t i = 0; i <= static_cast<size_t>(best); ++i)
    if (kNames[i] == forced) return static_cast<CpuTier>(i);
  throw std::invalid_argument(
      "KKTORCH_CPU_CAPABILITY: expected one of generic, avx2, avx512, avx512_bf16, at most " +
      std::string(kNames[static_cast<size_t>(best)]) + " on this machine, but got '" + forced +
      "'");
}

}  // namespace

CpuTier cpu_tier() {
  static const CpuTier tier = choose();
  return tier;
}

std::string_view cpu_tier_name() { return kNames[static_cast<size_t>(cpu_tier())]; }

}  // namespace kktorch::csrc
