// relu_mask: activation and packed mask, one read and one write. Twin of reference/relu_mask.py.
#pragma once

#include "word.h"

namespace xattr {
inline namespace CPU_CAPABILITY {

// Activates one word and returns its bits.
template <typename T>
uint32_t activate(Word<T>& z, const Slope<T>& slope, int64_t column, int64_t count) {
  if (slope.values == nullptr) {
    const uint32_t bits = z.not_at_most_zero();
    z = z.where(bits, Word<T>::all(0));
    return bits;
  }
  const uint32_t bits = z.positive();
  z = z.where(bits, z * slope.word(column, count));
  return bits;
}

// z, h: rows of n elements (h may be z); bits: rows of words_of(n); the words begin .. end of the matrix.
template <typename T>
void relu_mask(const T* z, Slope<T> slope, T* h, int32_t* bits, int64_t n, int64_t begin, int64_t end) {
  for_words(n, begin, end, [&](int64_t k, int64_t offset, int64_t column, int64_t count) {
    Word<T> word = Word<T>::load(z + offset, count);
    bits[k] = static_cast<int32_t>(activate(word, slope, column, count));
    word.store(h + offset, count);
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace xattr
