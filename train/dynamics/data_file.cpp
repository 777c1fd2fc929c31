#include "train/dynamics/data_file.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "train/common/error.h"
#include "train/common/files.h"
#include "train/common/hash.h"
#include "train/common/torch_file.h"
#include "train/data/array_file.h"

namespace kktorch::dynamics::multihead {
namespace {

uint64_t hash_of(const Data& data) {
  uint64_t hash = fnv1a("");
  for (const auto& t : {data.X, data.y, data.relevant}) {
    if (!t.defined()) continue;
    const auto whole = t.contiguous();
    hash = fnv1a({static_cast<const char*>(whole.const_data_ptr()), whole.nbytes()}, hash);
  }
  return hash;
}

std::string shape_text(const at::Tensor& t) {
  return fmt::format("{} of shape [{}]", c10::toString(t.scalar_type()),
                     fmt::join(t.sizes(), ", "));
}

}  // namespace

void save_data(const std::filesystem::path& file, const Data& data, uint64_t seed) {
  std::map<std::string, at::Tensor> arrays = {
      {"X", data.X.contiguous()},
      {"y", data.y.contiguous()},
      {"R", torch::tensor(data.R, torch::kDouble)},
      {"seed", torch::tensor(static_cast<int64_t>(seed))},
      {"hash", torch::tensor(static_cast<int64_t>(hash_of(data)))}};
  if (data.relevant.defined()) arrays["relevant"] = data.relevant.contiguous();
  write_file(file, torch_save_bytes(arrays));
}

Data load_data(const std::filesystem::path& file) {
  const auto arrays = read_arrays(file);
  for (const auto* name : {"X", "y", "R", "hash"})
    if (!arrays.contains(name)) fail("{}: expected an array {}, but got none", file.string(), name);
  Data data{arrays.at("X"), arrays.at("y"), {}, arrays.at("R").item<double>()};
  if (data.X.dim() != 3 || data.X.scalar_type() != at::kDouble)
    fail("{}: expected X float64 of shape [n, T, d], but got {}", file.string(),
         shape_text(data.X));
  if (data.y.dim() != 1 || data.y.size(0) != data.X.size(0))
    fail("{}: expected y of shape [{}], but got {}", file.string(), data.X.size(0),
         shape_text(data.y));
  if (const auto found = arrays.find("relevant"); found != arrays.end()) {
    data.relevant = found->second;
    if (data.relevant.sizes() != data.X.sizes().slice(0, 2))
      fail("{}: expected relevant of shape [{}, {}], but got {}", file.string(), data.X.size(0),
           data.X.size(1), shape_text(data.relevant));
  }
  check_data(data);
  if (static_cast<uint64_t>(arrays.at("hash").item<int64_t>()) != hash_of(data))
    fail("{}: expected the samples of its hash, but got others", file.string());
  return data;
}

void keep_data(const std::filesystem::path& file, const Data& data, uint64_t seed) {
  if (!std::filesystem::exists(file)) return save_data(file, data, seed);
  if (hash_of(load_data(file)) != hash_of(data))
    fail("{}: expected the samples of seed {}, but it holds others; remove it to draw them again",
         file.string(), seed);
}

}  // namespace kktorch::dynamics::multihead
