#include "train/data/array_file.h"

#include <torch/torch.h>
#include <zlib.h>

#include <cstring>
#include <regex>
#include <vector>

#include "train/common/error.h"
#include "train/common/files.h"

namespace kktorch {
namespace {

namespace fs = std::filesystem;
using Arrays = std::map<std::string, at::Tensor>;

/// Bytes of a file, little-endian, with errors that name it.
class Bytes {
 public:
  Bytes(const std::string& content, std::string name) : content_(content), name_(std::move(name)) {}

  std::string_view at(size_t offset, size_t size) const {
    if (offset > content_.size() || size > content_.size() - offset)
      fail("{}: expected a whole .npz file, but got one that ends early", name_);
    return std::string_view(content_).substr(offset, size);
  }
  template <typename T>
  T number(size_t offset) const {
    T value;
    std::memcpy(&value, at(offset, sizeof(T)).data(), sizeof(T));
    return value;
  }
  size_t size() const { return content_.size(); }
  size_t find_last(std::string_view mark) const { return content_.rfind(mark); }
  const std::string& name() const { return name_; }

 private:
  const std::string& content_;
  std::string name_;
};

std::string inflate_raw(std::string_view packed, size_t size, const std::string& name) {
  std::string content(size, '\0');
  z_stream stream{};
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data()));
  stream.avail_in = static_cast<uInt>(packed.size());
  stream.next_out = reinterpret_cast<Bytef*>(content.data());
  stream.avail_out = static_cast<uInt>(size);
  int code = inflateInit2(&stream, -MAX_WBITS);
  if (code == Z_OK) code = inflate(&stream, Z_FINISH);
  inflateEnd(&stream);
  if (code != Z_STREAM_END || stream.avail_out != 0)
    fail("{}: expected a .npz file, but its packed data is damaged", name);
  return content;
}

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

/// One .npy member: a header that describes the array, then its numbers.
at::Tensor parse_npy(std::string_view content, const std::string& place) {
  if (content.size() < 12 || content.substr(0, 6) != "\x93NUMPY")
    fail("{}: expected an array in .npy format, but got something else", place);
  const bool wide = content[6] >= 2;
  uint32_t length = 0;
  std::memcpy(&length, content.data() + 8, wide ? 4 : 2);
  const size_t start = (wide ? 12 : 10) + size_t{length};
  if (start > content.size()) fail("{}: expected a whole array, but its header ends early", place);
  const std::string header(content.substr(wide ? 12 : 10, length));
  std::smatch descr, order, shape;
  if (!std::regex_search(header, descr, std::regex("'descr': *'([^']*)'")) ||
      !std::regex_search(header, order, std::regex("'fortran_order': *(True|False)")) ||
      !std::regex_search(header, shape, std::regex("'shape': *\\(([^)]*)\\)")))
    fail("{}: expected an array of numbers, but got header {}", place, header);
  if (order[1] == "True") fail("{}: expected C order, but got Fortran order", place);
  std::vector<int64_t> sizes;
  const std::string list = shape[1];
  const std::regex number("\\d+");
  for (auto it = std::sregex_iterator(list.begin(), list.end(), number);
       it != std::sregex_iterator(); ++it)
    sizes.push_back(std::stoll(it->str()));
  auto tensor = at::empty(sizes, dtype_of(descr[1], place));
  if (content.size() - start != tensor.nbytes())
    fail("{}: expected {} bytes of numbers, but got {}", place, tensor.nbytes(),
         content.size() - start);
  if (tensor.nbytes() > 0)
    std::memcpy(tensor.mutable_data_ptr(), content.data() + start, tensor.nbytes());
  return tensor;
}

/// The members of a zip archive by its central directory; sizes beyond 4 GB are not supported.
Arrays parse_npz(const Bytes& bytes) {
  const size_t end = bytes.find_last("PK\x05\x06");
  if (end == std::string::npos)
    fail("{}: expected a .npz file, but got no zip archive", bytes.name());
  const auto count = bytes.number<uint16_t>(end + 10);
  size_t entry = bytes.number<uint32_t>(end + 16);
  Arrays arrays;
  for (uint16_t i = 0; i < count; ++i) {
    const auto method = bytes.number<uint16_t>(entry + 10);
    const auto packed = bytes.number<uint32_t>(entry + 20),
               size = bytes.number<uint32_t>(entry + 24);
    const auto name_size = bytes.number<uint16_t>(entry + 28);
    const auto extra = bytes.number<uint16_t>(entry + 30),
               comment = bytes.number<uint16_t>(entry + 32);
    const size_t local = bytes.number<uint32_t>(entry + 42);
    std::string name(bytes.at(entry + 46, name_size));
    entry += 46 + size_t{name_size} + extra + comment;
    if (name.size() > 4 && name.ends_with(".npy")) name.resize(name.size() - 4);
    const size_t data =
        local + 30 + bytes.number<uint16_t>(local + 26) + bytes.number<uint16_t>(local + 28);
    const auto content = bytes.at(data, packed);
    const auto place = fmt::format("{}: {}", bytes.name(), name);
    if (method != 0 && method != 8)
      fail("{}: expected a stored or deflated array, but got zip method {}", place, method);
    arrays[name] = method == 0 ? parse_npy(content, place)
                               : parse_npy(inflate_raw(content, size, bytes.name()), place);
  }
  return arrays;
}

Arrays parse_pt(const std::string& content, const std::string& name) {
  try {
    Arrays arrays;
    const auto value = torch::pickle_load(std::vector<char>(content.begin(), content.end()));
    for (const auto& item : value.toGenericDict())
      arrays[item.key().toStringRef()] = item.value().toTensor().contiguous();
    return arrays;
  } catch (const c10::Error&) {
    fail("{}: expected a .pt file with a dictionary of tensors, but got something else", name);
  }
}

}  // namespace

Arrays read_arrays(const fs::path& file) {
  const auto extension = file.extension();
  if (extension != ".npz" && extension != ".pt")
    fail("{}: expected a .npz or .pt file, but got another extension", file.string());
  const auto content = read_file(file);
  if (content.empty()) fail("{}: expected arrays, but got an empty file", file.string());
  return extension == ".npz" ? parse_npz(Bytes(content, file.string()))
                             : parse_pt(content, file.string());
}

}  // namespace kktorch
