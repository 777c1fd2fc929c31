#pragma once
// Files that are whole or absent, and errors that name them.
#include <filesystem>
#include <string>
#include <string_view>

namespace kktorch {

/// The whole content of a file. @throws UserError if it cannot be read.
std::string read_file(const std::filesystem::path& file);

/// Writes to `file`.tmp, flushes it to the disk, and renames it: whoever opens `file` sees the old
/// content or the new.
/// @throws UserError if the disk is full or the folder not writable; `file` is then as it was.
void write_file(const std::filesystem::path& file, std::string_view content);

/// Appends `line` and a line break. @throws UserError as write_file.
void append_line(const std::filesystem::path& file, std::string_view line);

/// Creates a folder and its parents. @throws UserError if that fails.
void make_folder(const std::filesystem::path& folder);

}  // namespace kktorch
