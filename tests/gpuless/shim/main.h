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

}  // namespace cuemu

// The driver.
void run(const cuemu::Arguments& arguments);
