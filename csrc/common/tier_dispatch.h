#pragma once
// How a kernel table reaches its callers. A tiered source file (built once per tier, see
// cmake/KktorchTargets.cmake) defines `template <typename T> Table<T> KKTORCH_TIER::table();`;
// KKTORCH_DEFINE_TIERED declares these and defines the function that picks one at run time.
#include <type_traits>

#include "csrc/common/cpu_tier.h"

#if defined(__x86_64__)
#define KKTORCH_FOR_EACH_TIER(macro, Table, table)                                   \
  macro(generic, Table, table) macro(avx2, Table, table) macro(avx512, Table, table) \
      macro(avx512_bf16, Table, table)
#define KKTORCH_SELECT_TIER(table, T)                          \
  cpu_tier() >= CpuTier::kAvx512Bf16 ? avx512_bf16::table<T>() \
  : cpu_tier() == CpuTier::kAvx512   ? avx512::table<T>()      \
  : cpu_tier() == CpuTier::kAvx2     ? avx2::table<T>()        \
                                     : generic::table<T>()
#else
#define KKTORCH_FOR_EACH_TIER(macro, Table, table) macro(generic, Table, table)
#define KKTORCH_SELECT_TIER(table, T) generic::table<T>()
#endif

#define KKTORCH_DECLARE_TIER(tier, Table, table) \
  namespace tier {                               \
  template <typename T>                          \
  Table<T> table();                              \
  }

/// Defines `template <typename T> const Table<T>& table()` in the current namespace
/// (kktorch::csrc).
#define KKTORCH_DEFINE_TIERED(Table, table)                       \
  KKTORCH_FOR_EACH_TIER(KKTORCH_DECLARE_TIER, Table, table)       \
  template <typename T>                                           \
  const Table<T>& table() {                                       \
    static const Table<T> chosen = KKTORCH_SELECT_TIER(table, T); \
    return chosen;                                                \
  }

/// The same for a table that AMX has kernels of, for float and c10::BFloat16.
#if defined(__x86_64__)
#define KKTORCH_DEFINE_TIERED_WITH_AMX(Table, table)                              \
  KKTORCH_FOR_EACH_TIER(KKTORCH_DECLARE_TIER, Table, table)                       \
  KKTORCH_DECLARE_TIER(amx, Table, table)                                         \
  template <typename T>                                                           \
  const Table<T>& table() {                                                       \
    static const Table<T> chosen = [] {                                           \
      if constexpr (std::is_same_v<T, float> || std::is_same_v<T, c10::BFloat16>) \
        if (cpu_tier() == CpuTier::kAmx) return amx::table<T>();                  \
      return KKTORCH_SELECT_TIER(table, T);                                       \
    }();                                                                          \
    return chosen;                                                                \
  }
#else
#define KKTORCH_DEFINE_TIERED_WITH_AMX(Table, table) KKTORCH_DEFINE_TIERED(Table, table)
#endif
