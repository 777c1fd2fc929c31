#include "train/data/array_file.h"

#include <torch/torch.h>
#include <zlib.h>

#include <cstring>
#include <fstream>
#include <vector>

#include "train/common/error.h"
#include "train/common/files.h"
#include "train/data/npy.h"

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

at::Tensor parse_npy(std::string_view content, const std::string& place) {
  const auto header = read_npy_header(content, place);
  if (content.size() != header.bytes())
    fail("{}: expected {} bytes, but got {}", place, header.bytes(), content.size());
  content.remove_prefix(header.begin);
  const auto numbers = at::empty({static_cast<int64_t>(content.size())}, at::kByte);
  if (!content.empty()) std::memcpy(numbers.mutable_data_ptr(), content.data(), content.size());
  return npy_view(header, numbers).contiguous();
}

/// The array of a .npy file; its bytes are mapped, not copied.
at::Tensor map_npy(const fs::path& file) {
  const auto place = file.string();
  std::ifstream in(file, std::ios::binary);
  std::string start(size_t{1} << 16, '\0');  // more than the headers that NumPy writes
  in.read(start.data(), static_cast<std::streamsize>(start.size()));
  start.resize(static_cast<size_t>(in.gcount()));
  const auto header = read_npy_header(start, place);
  const auto found = fs::file_size(file);
  if (found != header.bytes())
    fail("{}: expected {} bytes, but got {}", place, header.bytes(), found);
  const auto mapped = torch::from_file(place, false, static_cast<int64_t>(found), at::kByte);
  return npy_view(header, mapped.slice(0, static_cast<int64_t>(header.begin)));
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

c10::IValue parse_pt(const std::string& content, const std::string& expected) {
  if (!content.starts_with("PK")) fail("{}, but got something else", expected);
  try {
    return torch::pickle_load(std::vector<char>(content.begin(), content.end()));
  } catch (const c10::Error&) {
    fail("{}, but got something else", expected);
  }
}

Arrays tensors_of(const c10::IValue& value, const std::string& expected) {
  if (!value.isGenericDict()) fail("{}, but got a {}", expected, value.tagKind());
  Arrays arrays;
  for (const auto& item : value.toGenericDict()) {
    if (!item.key().isString() || !item.value().isTensor())
      fail("{}, but got a {} to {}", expected, item.key().tagKind(), item.value().tagKind());
    arrays[item.key().toStringRef()] = item.value().toTensor().contiguous();
  }
  return arrays;
}

}  // namespace

Arrays read_arrays(const fs::path& file) {
  const auto extension = file.extension();
  if (extension != ".npz" && extension != ".pt")
    fail("{}: expected a .npz or .pt file, but got another extension", file.string());
  const auto content = read_file(file);
  if (content.empty()) fail("{}: expected arrays, but got an empty file", file.string());
  if (extension == ".npz") return parse_npz(Bytes(content, file.string()));
  const auto expected =
      fmt::format("{}: expected a .pt file with a dictionary of tensors", file.string());
  return tensors_of(parse_pt(content, expected), expected);
}

at::Tensor read_array(const fs::path& file, const std::string& key) {
  const auto extension = file.extension();
  if (extension != ".npy" && extension != ".pt")
    fail("{}: expected a .npy or .pt file, but got another extension", file.string());
  if (!fs::is_regular_file(file)) fail("{}: expected a file, but got none", file.string());
  if (extension == ".npy") return map_npy(file);
  const auto expected = fmt::format(
      "{}: expected a .pt file with a tensor or a dictionary of tensors", file.string());
  const auto value = parse_pt(read_file(file), expected);
  if (value.isTensor()) return value.toTensor();
  const auto arrays = tensors_of(value, expected);
  const auto found = arrays.find(key);
  if (found == arrays.end()) fail("{}: expected an entry {}, but got none", file.string(), key);
  return found->second;
}

}  // namespace kktorch
