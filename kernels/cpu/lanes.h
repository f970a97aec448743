// Buffers of elements in the compute type, for loops that the compiler makes vectors of.
#pragma once

#include <memory>

#include "word.h"

namespace xattr {
inline namespace CPU_CAPABILITY {

// Room for `count` elements, whole words of them; not initialised.
template <typename T>
std::unique_ptr<T[]> lanes(int64_t count) {
  return std::unique_ptr<T[]>(new T[words_of(count) * kWordBits]);
}

// `count` elements in the compute type: x itself where it has that type, else `buffer`, whole words long.
template <typename T>
const Compute<T>* widen(const T* x, int64_t count, Compute<T>* buffer) {
  if constexpr (std::is_same_v<T, Compute<T>>) {
    return x;
  } else {
    for (int64_t i = 0; i < count; i += kWordBits) {
      const Word<T> word = Word<T>::load(x + i, std::min(kWordBits, count - i));
      for (int j = 0; j < Word<T>::kVectors; ++j) word.v[j].store(buffer + i + j * Word<T>::kLanes);
    }
    return buffer;
  }
}

// The opposite: `count` elements of `wide`, which may be read in whole words, to out. Inline, since rows may be short.
template <typename T>
[[gnu::always_inline]] inline void narrow(const Compute<T>* wide, int64_t count, T* out) {
  for (int64_t i = 0; i < count; i += kWordBits) {
    Word<T> word;
    for (int j = 0; j < Word<T>::kVectors; ++j) {
      word.v[j] = Word<T>::Vector::loadu(wide + i + j * Word<T>::kLanes);
    }
    word.store(out + i, std::min(kWordBits, count - i));
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace xattr
