#pragma once
// A hash that is the same everywhere and for ever: for names of random streams and checksums of
// data.
#include <cstdint>
#include <string_view>

namespace kktorch {

/// 64-bit FNV-1a of `bytes`; `start` is the hash of what came before.
constexpr uint64_t fnv1a(std::string_view bytes, uint64_t start = 0xCBF29CE484222325U) {
  for (const char c : bytes) start = (start ^ static_cast<unsigned char>(c)) * 0x100000001B3U;
  return start;
}

}  // namespace kktorch
