#include "train/data/site_packages.h"

#include <cstdlib>

namespace kktorch {

namespace fs = std::filesystem;

fs::path environment_path(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

std::vector<fs::path> site_packages() {
  std::vector<fs::path> folders;
  for (const auto& venv : {environment_path("KKTORCH_VENV"), environment_path("VIRTUAL_ENV"),
                           fs::path(KKTORCH_SOURCE_VENV)}) {
    std::error_code error;
    if (venv.empty()) continue;
    for (const auto& entry : fs::directory_iterator(venv / "lib", error))
      if (entry.path().filename().string().starts_with("python3"))
        folders.push_back(entry.path() / "site-packages");
  }
  return folders;
}

}  // namespace kktorch
