# Warnings and sanitizers of our own targets; nothing is set globally.
function(kktorch_compile_options target)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Werror>)
  if(KKTORCH_SANITIZE)
    # LibTorch hides type information that -fsanitize=vptr needs.
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${KKTORCH_SANITIZE}
                           -fno-sanitize=vptr -fno-omit-frame-pointer -fno-sanitize-recover=all>)
    target_link_options(${target} PRIVATE -fsanitize=${KKTORCH_SANITIZE})
  endif()
endfunction()

# CPU kernels are compiled once per instruction-set tier, from the same source, each in a namespace of its own
# (KKTORCH_TIER); csrc/common/cpu_tier.h chooses one at run time.
#   kktorch_tiered_sources(target source...)
#   kktorch_amx_sources(target source...)     the same for one more tier, which only the products of attention gain by
function(kktorch_tiered_sources target)
  set(tiers generic)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    list(APPEND tiers avx2 avx512 avx512_bf16)
  endif()
  foreach(tier ${tiers})
    kktorch_tier(${target} ${tier} ${ARGN})
  endforeach()
endfunction()

function(kktorch_amx_sources target)
  if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    return()
  endif()
  kktorch_tier(${target} amx ${ARGN})
  target_compile_definitions(${target}_amx PRIVATE KKTORCH_AMX)
  if(KKTORCH_EMULATE_AMX)
    target_compile_definitions(${target} PRIVATE KKTORCH_EMULATE_AMX)
    target_compile_definitions(${target}_amx PRIVATE KKTORCH_EMULATE_AMX)
  endif()
endfunction()

function(kktorch_tier target tier)
  set(flags_generic "")
  set(flags_avx2 -mavx2 -mfma -mf16c)
  set(flags_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c -mprefer-vector-width=512)
  # GCC 12 takes the undefined lanes of its own intrinsics for uninitialised variables.
  list(APPEND flags_avx512 -Wno-uninitialized -Wno-maybe-uninitialized)
  set(flags_avx512_bf16 ${flags_avx512} -mavx512bf16)
  set(flags_amx ${flags_avx512_bf16} -mamx-tile -mamx-bf16)
  add_library(${target}_${tier} OBJECT ${ARGN})
  target_include_directories(${target}_${tier} PRIVATE ${PROJECT_SOURCE_DIR})
  target_include_directories(${target}_${tier} SYSTEM PRIVATE ${kktorch_torch_include})
  target_compile_definitions(${target}_${tier} PRIVATE KKTORCH_TIER=${tier})
  # Kernels are plain loops for the vectoriser; contraction gives the fused multiply-adds that the formulas ask for.
  target_compile_options(${target}_${tier} PRIVATE -O3 -ffp-contract=fast -fno-math-errno)
  kktorch_compile_options(${target}_${tier})
  target_compile_options(${target}_${tier} PRIVATE ${flags_${tier}})
  target_sources(${target} PRIVATE $<TARGET_OBJECTS:${target}_${tier}>)
endfunction()
