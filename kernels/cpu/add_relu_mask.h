// add_relu_mask: relu_mask of a sum, without storing the sum. Twin of reference/add_relu_mask.py.
#pragma once

#include "relu_mask.h"

namespace xattr {
inline namespace CPU_CAPABILITY {

// a, b, h: rows of n elements (h may be a or b); bits: rows of words_of(n); the words begin .. end of the matrix.
template <typename T>
void add_relu_mask(const T* a, const T* b, Slope<T> slope, T* h, int32_t* bits, int64_t n, int64_t begin, int64_t end) {
  for_words(n, begin, end, [&](int64_t k, int64_t offset, int64_t column, int64_t count) {
    Word<T> word = Word<T>::load(a + offset, count) + Word<T>::load(b + offset, count);
    bits[k] = static_cast<int32_t>(activate(word, slope, column, count));
    word.store(h + offset, count);
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace xattr
