#pragma once
// Instruction-set tiers of the CPU kernels. Every tier holds the same code, compiled for another
// machine; the best one that this machine has is used,
// KKTORCH_CPU_CAPABILITY=generic|avx2|avx512|avx512_bf16 forces a lower one. The tier `amx`
// must be asked for: no machine that has it has run it yet.
#include <string_view>

namespace kktorch::csrc {

enum class CpuTier { kGeneric, kAvx2, kAvx512, kAvx512Bf16, kAmx };

/// The tier in use, chosen at the first call.
/// @throws std::invalid_argument if KKTORCH_CPU_CAPABILITY names no tier, or one that this machine
/// lacks.
CpuTier cpu_tier();

/// "generic", "avx2", "avx512", "avx512_bf16" or "amx".
std::string_view cpu_tier_name();

}  // namespace kktorch::csrc
