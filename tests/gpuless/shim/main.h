// What a driver, the code that starts a kernel under g++, is given: the arguments of `shim.Program.run`, by number.
#pragma once

#include <cstring>
#include <vector>

#include "cuemu.h"

namespace cuemu {

struct Argument {
  bool is_buffer = false;
  uint64_t word = 0;        // bytes of a buffer's storage, or the bits of a number
  void* storage = nullptr;  // of exactly that size, so that AddressSanitizer sees its ends
  void* start = nullptr;
};

struct Arguments {
  std::vector<Argument> all;

  explicit Arguments(uint64_t count) : all(count) {}

  template <typename T>
  T* pointer(int i) const {
    if (!all.at(i).is_buffer) die("a number where a buffer is wanted");
    return static_cast<T*>(all[i].start);
  }

  int64_t integer(int i) const { return bits_as<int64_t>(all.at(i).word); }
  double real(int i) const { return bits_as<double>(all.at(i).word); }
};

// A structure from `Record.for_shim` (records.py): argument 0 are its bytes, 1 the place of each of its pointers and
// the number of the buffer that it leads to, then these.
template <typename Structure>
Structure structure_of(const Arguments& arguments) {
  if (arguments.all.at(0).word != sizeof(Structure)) die("the structure has another size in Python");
  Structure found;
  std::memcpy(static_cast<void*>(&found), arguments.pointer<char>(0), sizeof found);
  const auto* pointers = arguments.pointer<int64_t>(1);
  const size_t count = arguments.all.at(1).word / (2 * sizeof(int64_t));
  for (size_t i = 0; i < count; ++i) {
    void* start = arguments.pointer<void>(static_cast<int>(2 + pointers[2 * i + 1]));
    std::memcpy(reinterpret_cast<char*>(&found) + pointers[2 * i], &start, sizeof start);
  }
  return found;
}

}  // namespace cuemu

// The driver.
void run(const cuemu::Arguments& arguments);
