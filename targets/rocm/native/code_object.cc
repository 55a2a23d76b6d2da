#include "code_object.h"

#include <algorithm>
#include <cctype>
#include <cstring>

#include "error.h"

namespace mlcrt {
namespace rocm {
namespace {

constexpr std::string_view kBundleMagic = "__CLANG_OFFLOAD_BUNDLE__";
constexpr std::string_view kElfMagic = "\x7f" "ELF";
constexpr uint32_t kNoteSection = 7, kMetadataNote = 32;
constexpr int kDeepest = 16;  // nesting of the notes; LLVM's have 4

[[noreturn]] void damaged(const char* what) {
  MLCRT_ROCM_THROW << "the library's GPU code is damaged (" << what << "); compile it again with mlcrt compile";
  throw;  // not reached
}

// Little-endian numbers and pieces of a file, with bounds.
class Bytes {
 public:
  explicit Bytes(std::string_view data) : data_(data) {}

  template <typename T>
  T at(uint64_t offset) const {
    T value;
    std::memcpy(&value, piece(offset, sizeof(T)).data(), sizeof(T));
    return value;
  }

  std::string_view piece(uint64_t offset, uint64_t size) const {
    if (offset > data_.size() || size > data_.size() - offset) damaged("it ends too early");
    return data_.substr(offset, size);
  }

 private:
  std::string_view data_;
};

// MessagePack, the types that LLVM writes: maps, arrays, strings, unsigned numbers and booleans.
class MessagePack {
 public:
  explicit MessagePack(std::string_view data) : bytes_(data) {}

  uint32_t map() { return count(0x80, 0xde); }
  uint32_t array() { return count(0x90, 0xdc); }

  std::string text() {
    uint8_t tag = next<uint8_t>();
    uint64_t size = 0;
    if ((tag & 0xe0) == 0xa0) {
      size = tag & 0x1f;
    } else if (tag == 0xd9) {
      size = next<uint8_t>();
    } else if (tag == 0xda) {
      size = big<uint16_t>();
    } else if (tag == 0xdb) {
      size = big<uint32_t>();
    } else {
      damaged("its notes have no text where one is due");
    }
    at_ += size;
    return std::string(bytes_.piece(at_ - size, size));
  }

  uint64_t number() {
    uint8_t tag = next<uint8_t>();
    if (tag < 0x80) return tag;
    switch (tag) {
      case 0xcc: return next<uint8_t>();
      case 0xcd: return big<uint16_t>();
      case 0xce: return big<uint32_t>();
      case 0xcf: return big<uint64_t>();
      default: damaged("its notes have no number where one is due");
    }
  }

  void skip(int depth = 0) {
    if (depth > kDeepest) damaged("its notes are nested too deep");
    uint8_t tag = bytes_.at<uint8_t>(at_);
    if ((tag & 0xf0) == 0x80 || tag == 0xde) {
      for (uint32_t left = map(); left != 0; --left) skip(depth + 1), skip(depth + 1);
    } else if ((tag & 0xf0) == 0x90 || tag == 0xdc) {
      for (uint32_t left = array(); left != 0; --left) skip(depth + 1);
    } else if ((tag & 0xe0) == 0xa0 || (tag >= 0xd9 && tag <= 0xdb)) {
      text();
    } else if (tag == 0xc0 || tag == 0xc2 || tag == 0xc3 || tag >= 0xe0) {
      ++at_;  // nil, a boolean, a small negative number
    } else {
      number();
    }
  }

 private:
  template <typename T>
  T next() {
    at_ += sizeof(T);
    return bytes_.at<T>(at_ - sizeof(T));
  }

  template <typename T>
  T big() {
    T value = 0;
    for (size_t i = 0; i < sizeof(T); ++i) value = static_cast<T>(value << 8 | next<uint8_t>());
    return value;
  }

  uint32_t count(uint8_t fixed, uint8_t wide) {
    uint8_t tag = next<uint8_t>();
    if ((tag & 0xf0) == fixed) return tag & 0x0f;
    if (tag == wide) return big<uint16_t>();
    damaged("its notes have no list where one is due");
  }

  Bytes bytes_;
  uint64_t at_ = 0;
};

KernelArgument read_argument(MessagePack* notes) {
  KernelArgument argument;
  for (uint32_t left = notes->map(); left != 0; --left) {
    std::string key = notes->text();
    if (key == ".offset") {
      argument.offset = notes->number();
    } else if (key == ".size") {
      argument.size = notes->number();
    } else if (key == ".value_kind") {
      argument.kind = notes->text();
    } else {
      notes->skip();
    }
  }
  return argument;
}

void read_kernel(MessagePack* notes, std::map<std::string, KernelInfo>* kernels) {
  KernelInfo kernel;
  std::string name;
  for (uint32_t left = notes->map(); left != 0; --left) {
    std::string key = notes->text();
    if (key == ".name") {
      name = notes->text();
    } else if (key == ".max_flat_workgroup_size") {
      kernel.max_threads = notes->number();
    } else if (key == ".group_segment_fixed_size") {
      kernel.lds = notes->number();
    } else if (key == ".args") {
      for (uint32_t count = notes->array(); count != 0; --count) {
        KernelArgument argument = read_argument(notes);
        if (argument.kind.rfind("hidden_", 0) != 0) kernel.arguments.push_back(argument);
      }
    } else {
      notes->skip();
    }
  }
  (*kernels)[name] = std::move(kernel);
}

std::string_view metadata(std::string_view code) {
  Bytes bytes(code);
  uint64_t table = bytes.at<uint64_t>(40);
  uint16_t size = bytes.at<uint16_t>(58), sections = bytes.at<uint16_t>(60);
  bytes.piece(table, uint64_t{size} * sections);
  for (uint16_t i = 0; i < sections; ++i) {
    uint64_t header = table + uint64_t{i} * size;
    if (bytes.at<uint32_t>(header + 4) != kNoteSection) continue;
    std::string_view section = bytes.piece(bytes.at<uint64_t>(header + 24), bytes.at<uint64_t>(header + 32));
    Bytes notes(section);
    for (uint64_t at = 0; at + 12 <= section.size();) {
      uint64_t name = notes.at<uint32_t>(at), length = notes.at<uint32_t>(at + 4);
      uint32_t type = notes.at<uint32_t>(at + 8);
      uint64_t body = at + 12 + (name + 3) / 4 * 4;
      if (type == kMetadataNote && notes.piece(at + 12, name) == std::string_view("AMDGPU", 7)) {
        return notes.piece(body, length);
      }
      at = body + (length + 3) / 4 * 4;
    }
  }
  damaged("it does not describe its kernels");
}

}  // namespace

std::string_view select_code(std::string_view image, const std::string& arch) {
  if (image.substr(0, kElfMagic.size()) == kElfMagic) return image;
  if (image.substr(0, kBundleMagic.size()) != kBundleMagic) damaged("it is no code object");
  Bytes bytes(image);
  uint64_t at = kBundleMagic.size();
  std::string have;
  uint64_t entries = bytes.at<uint64_t>(at);
  at += 8;
  for (; entries != 0; --entries) {
    uint64_t start = bytes.at<uint64_t>(at), size = bytes.at<uint64_t>(at + 8), length = bytes.at<uint64_t>(at + 16);
    std::string_view name = bytes.piece(at + 24, length);
    at += 24 + length;
    if (name.substr(0, 5) == "host-") continue;
    std::string_view found = name.substr(name.rfind("--") == std::string_view::npos ? 0 : name.rfind("--") + 2);
    found = found.substr(0, found.find(':'));
    auto plain = [](unsigned char c) { return std::isalnum(c) || c == '-' || c == '_'; };  // it goes into a sentence
    if (!std::all_of(found.begin(), found.end(), plain)) damaged("it names no GPU");
    if (found == arch) return bytes.piece(start, size);
    have += (have.empty() ? "" : ", ") + std::string(found);
  }
  MLCRT_ROCM_THROW << "the library has GPU code for " << have << " and this GPU is " << arch
                   << "; compile it again with mlcrt compile --target rocm:" << arch;
  throw;  // not reached
}

std::map<std::string, KernelInfo> read_kernels(std::string_view code) {
  std::map<std::string, KernelInfo> kernels;
  MessagePack notes(metadata(code));
  for (uint32_t left = notes.map(); left != 0; --left) {
    if (notes.text() != "amdhsa.kernels") {
      notes.skip();
      continue;
    }
    for (uint32_t count = notes.array(); count != 0; --count) read_kernel(&notes, &kernels);
  }
  return kernels;
}

}  // namespace rocm
}  // namespace mlcrt
