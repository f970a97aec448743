// mask_mul: apply a packed mask. Twin of reference/mask_mul.py.
#pragma once

#include "word.h"

namespace xattr {
inline namespace CPU_CAPABILITY {

// t, out: rows of n elements (out may be t); bits: rows of words_of(n); the words begin .. end of the matrix.
template <typename T>
void mask_mul(const T* t, const int32_t* bits, Slope<T> slope, T* out, int64_t n, int64_t begin, int64_t end) {
  for_words(n, begin, end, [&](int64_t k, int64_t offset, int64_t column, int64_t count) {
    const Word<T> word = Word<T>::load(t + offset, count);
    const Word<T> rest = slope.values == nullptr ? Word<T>::all(0) : word * slope.word(column, count);
    word.where(static_cast<uint32_t>(bits[k]), rest).store(out + offset, count);
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace xattr
