#include "train/common/files.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <iterator>
#include <system_error>

#include "train/common/error.h"

namespace kktorch {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail_to_write(const fs::path& file, int error) {
  fail("{}: expected to write this file, but got: {}", file.string(),
       std::generic_category().message(error));
}

/// A file open for writing; write and close report what the disk says.
class OutputFile {
 public:
  OutputFile(fs::path file, int flags)
      : file_(std::move(file)), descriptor_(::open(file_.c_str(), flags | O_CLOEXEC, 0644)) {
    if (descriptor_ < 0) fail_to_write(file_, errno);
  }
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  ~OutputFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }

  void write(std::string_view content) {
    while (!content.empty()) {
      const auto written = ::write(descriptor_, content.data(), content.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) fail_to_write(file_, errno);
      content.remove_prefix(static_cast<size_t>(written));
    }
  }

  void flush_to_disk() {
    if (::fsync(descriptor_) != 0 && errno != EINVAL) fail_to_write(file_, errno);
  }

  void close() {
    if (::close(std::exchange(descriptor_, -1)) != 0) fail_to_write(file_, errno);
  }

 private:
  fs::path file_;
  int descriptor_;
};

}  // namespace

std::string read_file(const fs::path& file) {
  std::error_code error;
  if (!fs::exists(file, error)) fail("{}: expected a file, but it does not exist", file.string());
  if (fs::is_directory(file, error)) fail("{}: expected a file, but got a folder", file.string());
  std::ifstream in(file, std::ios::binary);
  std::string content(std::istreambuf_iterator<char>(in), {});
  if (!in) fail("{}: expected a readable file, but reading it failed", file.string());
  return content;
}

void write_file(const fs::path& file, std::string_view content) {
  auto temporary = file;
  temporary += ".tmp";
  try {
    OutputFile out(temporary, O_WRONLY | O_CREAT | O_TRUNC);
    out.write(content);
    out.flush_to_disk();
    out.close();
  } catch (...) {
    std::error_code ignored;
    fs::remove(temporary, ignored);
    throw;
  }
  std::error_code error;
  fs::rename(temporary, file, error);
  if (error) fail_to_write(file, error.value());
}

void append_line(const fs::path& file, std::string_view line) {
  OutputFile out(file, O_WRONLY | O_CREAT | O_APPEND);
  out.write(std::string(line) + '\n');
  out.close();
}

void make_folder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error || !fs::is_directory(folder))
    fail("{}: expected to create this folder, but got: {}", folder.string(),
         error ? error.message() : "a file in its place");
}

}  // namespace kktorch
