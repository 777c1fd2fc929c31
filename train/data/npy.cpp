#include "train/data/npy.h"

#include <algorithm>
#include <map>
#include <regex>

#include "train/common/error.h"

namespace kktorch {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";

at::ScalarType dtype_of(const std::string& descriptor, const std::string& place) {
  static const std::map<std::string, at::ScalarType> known = {
      {"<f8", at::kDouble}, {"<f4", at::kFloat}, {"<f2", at::kHalf},
      {"<i8", at::kLong},   {"<i4", at::kInt},   {"<i2", at::kShort},
      {"|i1", at::kChar},   {"|u1", at::kByte},  {"|b1", at::kBool}};
  const auto found = known.find(descriptor);
  if (found == known.end())
    fail("{}: expected little-endian floating, integer or bool numbers, but got dtype '{}'", place,
         descriptor);
  return found->second;
}

}  // namespace

size_t NpyHeader::bytes() const {
  size_t count = c10::elementSize(dtype);
  for (const int64_t size : shape) count *= static_cast<size_t>(size);
  return begin + count;
}

NpyHeader read_npy_header(std::string_view start, const std::string& place) {
  if (start.size() < 12 || start.substr(0, kMagic.size()) != kMagic)
    fail("{}: expected an array in .npy format, but got something else{}", place,
         start.starts_with("PK") ? " (an archive)" : "");
  const auto byte = [&](size_t i) { return size_t{static_cast<uint8_t>(start[i])}; };
  if (byte(6) < 1 || byte(6) > 3)
    fail("{}: expected .npy format 1.0 to 3.0, but got {}.{}", place, byte(6), byte(7));
  const size_t fixed = byte(6) == 1 ? 10 : 12;
  size_t length = byte(8) + (byte(9) << 8);
  if (byte(6) > 1) length += (byte(10) << 16) + (byte(11) << 24);
  if (start.size() < fixed + length)
    fail("{}: expected a whole array, but its header ends early", place);
  const std::string text(start.substr(fixed, length));
  std::smatch descr, order, shape;
  if (!std::regex_search(text, descr, std::regex("'descr': *'([^']*)'")) ||
      !std::regex_search(text, order, std::regex("'fortran_order': *(True|False)")) ||
      !std::regex_search(text, shape, std::regex("'shape': *\\(([^)]*)\\)")))
    fail("{}: expected an array of numbers, but got header {}", place, text);
  NpyHeader header{fixed + length, dtype_of(descr[1], place), order[1] == "True", {}};
  const std::string sizes = shape[1];
  const std::regex number("\\d+");
  for (std::sregex_iterator i(sizes.begin(), sizes.end(), number), end; i != end; ++i)
    header.shape.push_back(std::stoll(i->str()));
  return header;
}

at::Tensor npy_view(const NpyHeader& header, const at::Tensor& numbers) {
  const auto values = numbers.view(header.dtype);
  if (!header.fortran) return values.view(header.shape);
  // Fortran order is C order of the reversed shape, read backwards.
  const std::vector<int64_t> reversed(header.shape.rbegin(), header.shape.rend());
  std::vector<int64_t> backwards(reversed.size());
  for (size_t i = 0; i < backwards.size(); ++i)
    backwards[i] = static_cast<int64_t>(backwards.size() - 1 - i);
  return values.view(reversed).permute(backwards);
}

}  // namespace kktorch
