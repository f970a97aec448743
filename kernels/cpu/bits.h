// The layout of packed masks, the same on every back end: bit i of word j of a row is element 32 * j + i, least
// significant bit first; rows are padded with zero bits to whole words.
#pragma once

#include <cstdint>

namespace xattr {

constexpr int64_t kWordBits = 32;

// Words of a row of so many elements. Static, so that every instruction set keeps a copy of its own.
static inline int64_t words_of(int64_t elements) {
  return (elements + kWordBits - 1) / kWordBits;
}

}  // namespace xattr
