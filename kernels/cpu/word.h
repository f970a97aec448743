// A word: 32 neighbouring elements of a row and their 32 mask bits, as vectors of the compute type.
//
// The vector classes are ATen's, so this header is compiled once for each instruction set.
#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <tuple>
#include <type_traits>

#include "bits.h"

namespace xattr {
inline namespace CPU_CAPABILITY {

// bf16 and fp16 are computed in fp32.
template <typename T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Lane i of `yes` where bit i is set, of `no` elsewhere.
template <typename C>
at::vec::Vectorized<C> select(uint32_t bits, const at::vec::Vectorized<C>& no, const at::vec::Vectorized<C>& yes) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<C, double>) {
    return _mm512_mask_blend_pd(static_cast<__mmask8>(bits), no, yes);
  } else {
    return _mm512_mask_blend_ps(static_cast<__mmask16>(bits), no, yes);
  }
#elif defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<C, double>) {
    const __m256i place = _mm256_set_epi64x(8, 4, 2, 1);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi64x(bits), place);
    return _mm256_blendv_pd(no, yes, _mm256_castsi256_pd(_mm256_cmpeq_epi64(set, place)));
  } else {
    const __m256i place = _mm256_set_epi32(128, 64, 32, 16, 8, 4, 2, 1);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), place);
    return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, place)));
  }
#else
  constexpr int lanes = at::vec::Vectorized<C>::size();
  std::array<C, lanes> from_no, from_yes;
  no.store(from_no.data());
  yes.store(from_yes.data());
  for (int i = 0; i < lanes; ++i) {
    if (bits >> i & 1) from_no[i] = from_yes[i];
  }
  return at::vec::Vectorized<C>::loadu(from_no.data());
#endif
}

template <typename T>
struct Word {
  using C = Compute<T>;
  using Vector = at::vec::Vectorized<C>;
  static constexpr int kLanes = Vector::size();
  static constexpr int kVectors = kWordBits / kLanes;
  static constexpr uint32_t kLaneBits = kLanes == 32 ? ~0u : (1u << kLanes) - 1;

  std::array<Vector, kVectors> v;

  static Word all(C value) {
    Word word;
    word.v.fill(Vector(value));
    return word;
  }

  // Loads `count` elements; the rest of the word is zero.
  static Word load(const T* p, int64_t count) {
    Word word;
    if constexpr (std::is_same_v<T, C>) {
      for (int i = 0; i < kVectors; ++i) word.v[i] = load_some<Vector>(p, count, i * kLanes);
    } else {
      using Narrow = at::vec::Vectorized<T>;
      for (int i = 0; i < kVectors; i += 2) {
        std::tie(word.v[i], word.v[i + 1]) = at::vec::convert_to_float<T>(load_some<Narrow>(p, count, i * kLanes));
      }
    }
    return word;
  }

  void store(T* p, int64_t count) const {
    if constexpr (std::is_same_v<T, C>) {
      for (int i = 0; i < kVectors; ++i) store_some(v[i], p, count, i * kLanes);
    } else {
      for (int i = 0; i < kVectors; i += 2) {
        store_some(at::vec::convert_from_float<T>(v[i], v[i + 1]), p, count, i * kLanes);
      }
    }
  }

  Word operator+(const Word& other) const {
    Word word;
    for (int i = 0; i < kVectors; ++i) word.v[i] = v[i] + other.v[i];
    return word;
  }

  Word operator*(const Word& other) const {
    Word word;
    for (int i = 0; i < kVectors; ++i) word.v[i] = v[i] * other.v[i];
    return word;
  }

  // Bits of the elements that are greater than zero.
  uint32_t positive() const {
#if defined(CPU_CAPABILITY_AVX512)
    return gather([](const Vector& x) { return compare_with_zero<_CMP_GT_OQ>(x); });
#else
    return gather([](const Vector& x) { return ~static_cast<uint32_t>((x > Vector(C(0))).zero_mask()); });
#endif
  }

  // Bits of the elements that are not at most zero: NaN counts, as in PyTorch's relu.
  uint32_t not_at_most_zero() const {
#if defined(CPU_CAPABILITY_AVX512)
    return gather([](const Vector& x) { return compare_with_zero<_CMP_NLE_UQ>(x); });
#else
    return gather([](const Vector& x) { return static_cast<uint32_t>((x <= Vector(C(0))).zero_mask()); });
#endif
  }

  // This word where the bit is set, `no` elsewhere.
  Word where(uint32_t bits, const Word& no) const {
    Word word;
    for (int i = 0; i < kVectors; ++i) word.v[i] = select<C>(bits >> (i * kLanes) & kLaneBits, no.v[i], v[i]);
    return word;
  }

 private:
#if defined(CPU_CAPABILITY_AVX512)
  template <int kRelation>
  static uint32_t compare_with_zero(const Vector& x) {
    if constexpr (std::is_same_v<C, double>) {
      return _mm512_cmp_pd_mask(x, _mm512_setzero_pd(), kRelation);
    } else {
      return _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), kRelation);
    }
  }
#endif

  template <typename V, typename P>
  static V load_some(const P* p, int64_t count, int64_t first) {
    if (count == kWordBits || count >= first + V::size()) return V::loadu(p + first);
    if (count <= first) return V(P(0));
    std::array<P, V::size()> padded{};
    std::copy_n(p + first, count - first, padded.begin());
    return V::loadu(padded.data());
  }

  template <typename V, typename P>
  static void store_some(const V& vector, P* p, int64_t count, int64_t first) {
    if (count == kWordBits) return vector.store(p + first);
    if (count > first) vector.store(p + first, static_cast<int>(std::min<int64_t>(count - first, V::size())));
  }

  template <typename F>
  uint32_t gather(F lane_bits) const {
    uint32_t bits = 0;
    for (int i = 0; i < kVectors; ++i) bits |= (lane_bits(v[i]) & kLaneBits) << (i * kLanes);
    return bits;
  }
};

// The factor of what the mask leaves out: absent (zero), one for all, or one for each column.
template <typename T>
struct Slope {
  const T* values;
  bool by_column;

  // The slopes of the word that starts at `column`.
  Word<T> word(int64_t column, int64_t count) const {
    return by_column ? Word<T>::load(values + column, count) : Word<T>::all(static_cast<Compute<T>>(*values));
  }
};

// Calls body(k, offset, column, count) for the words begin .. end of a matrix with rows of n elements: k counts words
// through the matrix, offset is the place of the word's first element in the matrix, column its place in the row.
template <typename Body>
void for_words(int64_t n, int64_t begin, int64_t end, Body body) {
  const int64_t words = words_of(n);
  int64_t row = begin / words, j = begin % words;
  for (int64_t k = begin; k < end; ++k) {
    const int64_t column = j * kWordBits;
    body(k, row * n + column, column, std::min(kWordBits, n - column));
    if (++j == words) {
      j = 0;
      ++row;
    }
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace xattr
