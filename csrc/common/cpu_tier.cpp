#include "csrc/common/cpu_tier.h"

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <array>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace kktorch::csrc {
namespace {

constexpr std::array<std::string_view, 5> kNames = {"generic", "avx2", "avx512", "avx512_bf16",
                                                    "amx"};

CpuTier best_of_machine() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return __builtin_cpu_supports("avx512bf16") ? CpuTier::kAvx512Bf16 : CpuTier::kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return CpuTier::kAvx2;
#endif
  return CpuTier::kGeneric;
}

/// Whether this process may use the tiles of AMX; Linux wants to be asked once.
bool may_use_amx() {
  if (best_of_machine() != CpuTier::kAvx512Bf16) return false;
#if defined(KKTORCH_EMULATE_AMX)
  return true;
#elif defined(__linux__) && defined(__x86_64__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return __builtin_cpu_supports("amx-bf16") &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

CpuTier choose() {
  const CpuTier best = best_of_machine();
  const char* forced = std::getenv("KKTORCH_CPU_CAPABILITY");
  if (!forced || !*forced) return best;
  for (size_t i = 0; i <= static_cast<size_t>(best); ++i)
    if (kNames[i] == forced) return static_cast<CpuTier>(i);
  if (forced == kNames.back() && may_use_amx()) return CpuTier::kAmx;
  throw std::invalid_argument(
      "KKTORCH_CPU_CAPABILITY: expected one of generic, avx2, avx512, avx512_bf16, amx, at most " +
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
