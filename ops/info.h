#pragma once
// What this library was built with, and which path each op takes: for `kktorch info` and for bug
// reports.
#include <string>
#include <vector>

namespace kktorch {

struct BuildInfo {
  std::string version;        // of kktorch
  std::string torch_version;  // of the LibTorch it was built for
  std::string compiler;
  bool cuda_kernels;  // our CUDA kernels are built in
};

BuildInfo build_info();

/// How an op is computed on a device, with the switches of this process applied.
struct OpPath {
  std::string op, cpu, cuda;
};

std::vector<OpPath> op_paths();

}  // namespace kktorch
