// Launches that are written down instead of being run: for launchers whose kernels something else is to execute.
//
// A line of text a launch: the kernel's symbol, threads of the grid and of a block, bytes of shared memory, and its
// arguments: p<number of the buffer>+<offset>, n for null, i<integer>, x<bytes of a structure in hexadecimal>.
#pragma once

#include <dlfcn.h>

#include <string>
#include <type_traits>

#include "main.h"

namespace cuemu {

struct Recorder {
  const Arguments* given = nullptr;
  std::string text;

  static Recorder& instance() {
    static Recorder one;
    return one;
  }

  std::string place(const void* pointer) const {
    if (pointer == nullptr) return " n";
    const auto address = reinterpret_cast<uintptr_t>(pointer);
    for (size_t i = 0; i < given->all.size(); ++i) {
      const Argument& one = given->all[i];
      const auto first = reinterpret_cast<uintptr_t>(one.storage);
      if (one.is_buffer && first <= address && address <= first + one.word) {
        const auto start = reinterpret_cast<uintptr_t>(one.start);
        return " p" + std::to_string(i) + "+" + std::to_string(static_cast<int64_t>(address - start));
      }
    }
    die("a kernel is given a pointer to no buffer");
  }

  template <typename T>
  std::string word(const T& argument) const {
    if constexpr (std::is_pointer_v<T>) {
      return place(argument);
    } else if constexpr (std::is_integral_v<T>) {
      return " i" + std::to_string(argument);
    } else {
      std::string digits;
      unsigned char bytes[sizeof(T)];
      std::memcpy(bytes, &argument, sizeof(T));
      for (const unsigned char byte : bytes) {
        digits += "0123456789abcdef"[byte / 16];
        digits += "0123456789abcdef"[byte % 16];
      }
      return " x" + digits;
    }
  }

  template <typename... Parameters>
  void launch(
      void (*kernel)(Parameters...), unsigned grid, unsigned block, size_t shared,
      const std::decay_t<Parameters>&... arguments) {
    Dl_info info;
    if (dladdr(reinterpret_cast<void*>(kernel), &info) == 0 || info.dli_sname == nullptr) die("a kernel has no symbol");
    text += info.dli_sname;
    for (const size_t number : {size_t{grid}, size_t{block}, shared}) text += " " + std::to_string(number);
    text += (std::string() + ... + word(arguments)) + "\n";
  }
};

}  // namespace cuemu
