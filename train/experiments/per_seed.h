#pragma once
// What all parts of one seed share.
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <utility>

namespace kktorch {

/// Calls make(seed) once for every seed that is asked for; parts on several threads may ask.
template <typename T>
class PerSeed {
 public:
  explicit PerSeed(std::function<T(uint64_t)> make) : make_(std::move(make)) {}

  const T& at(uint64_t seed) {
    Entry* entry;
    {
      const std::lock_guard lock(mutex_);
      entry = &entries_[seed];  // nodes of a map stay where they are
    }
    std::call_once(entry->once, [&] { entry->value.emplace(make_(seed)); });
    return *entry->value;
  }

 private:
  struct Entry {
    std::once_flag once;
    std::optional<T> value;
  };

  std::function<T(uint64_t)> make_;
  std::mutex mutex_;
  std::map<uint64_t, Entry> entries_;
};

}  // namespace kktorch
