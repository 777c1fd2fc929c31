#pragma once
// How a kernel table reaches its callers. A tiered source file (built once per tier, see
// cmake/KktorchTargets.cmake) defines `template <typename T> Table<T> KKTORCH_TIER::table();`;
// KKTORCH_DEFINE_TIERED declares these and defines the function that picks one at run time.
#include "csrc/common/cpu_tier.h"

#if defined(__x86_64__)
#define KKTORCH_FOR_EACH_TIER(macro, Table, table)                                   \
  macro(generic, Table, table) macro(avx2, Table, table) macro(avx512, Table, table) \
      macro(avx512_bf16, Table, table)
#define KKTORCH_SELECT_TIER(table, T)                          \
  cpu_tier() == CpuTier::kAvx512Bf16 ? avx512_bf16::table<T>() \
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
