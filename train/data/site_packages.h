#pragma once
// Where the Python packages lie whose data are read.
#include <filesystem>
#include <vector>

namespace kktorch {

/// The path of an environment variable; empty if it is not set.
std::filesystem::path environment_path(const char* name);

/// The site-packages folders of the virtual environments $KKTORCH_VENV, $VIRTUAL_ENV and .venv of
/// the source tree, as far as they exist.
std::vector<std::filesystem::path> site_packages();

}  // namespace kktorch
