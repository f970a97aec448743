// Products with a weight of few rows, such as the last layer of a network: fp32, one pass over the wide operand.
//
// A sum along a row is made in many lanes, as a matrix-vector product makes it: more exact than one after the other.
#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <array>
#include <cstdint>

namespace xattr {
inline namespace CPU_CAPABILITY {

using Floats = at::vec::Vectorized<float>;

// The vector at p, of which `count` elements exist; the rest is zero.
inline Floats load_lanes(const float* p, int64_t count) {
  return count >= Floats::size() ? Floats::loadu(p) : Floats::loadu(p, static_cast<int>(count));
}

inline void store_lanes(const Floats& v, float* p, int64_t count) {
  v.store(p, static_cast<int>(std::min<int64_t>(count, Floats::size())));
}

// The sum of a[i] b[i].
inline float dot(const float* a, const float* b, int64_t size) {
  constexpr int64_t lanes = Floats::size();
  std::array<Floats, 4> sums{Floats(0.f), Floats(0.f), Floats(0.f), Floats(0.f)};
  int64_t i = 0;
  for (; i + 4 * lanes <= size; i += 4 * lanes) {
    for (int64_t s = 0; s < 4; ++s) {
      const int64_t place = i + s * lanes;
      sums[s] = at::vec::fmadd(Floats::loadu(a + place), Floats::loadu(b + place), sums[s]);
    }
  }
  for (int64_t s = 0; i < size; i += lanes, s = (s + 1) % 4) {
    sums[s] = at::vec::fmadd(load_lanes(a + i, size - i), load_lanes(b + i, size - i), sums[s]);
  }
  const Floats total = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  return at::vec::vec_reduce_all<float>([](const Floats& x, const Floats& y) { return x + y; }, total);
}

// out = a w.T for a [rows, k] and w [n, k].
inline void narrow_forward(
    int64_t rows, int64_t n, int64_t k, const float* a, int64_t lda, const float* w, float* out, int64_t ld_out) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < n; ++j) out[r * ld_out + j] = dot(a + r * lda, w + j * k, k);
  }
}

// out = g w for g [rows, n] and w [n, k].
inline void narrow_cotangent(
    int64_t rows, int64_t n, int64_t k, const float* g, int64_t ldg, const float* w, float* out, int64_t ld_out) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < k; i += Floats::size()) {
      Floats sum = Floats(g[r * ldg]) * load_lanes(w + i, k - i);
      for (int64_t j = 1; j < n; ++j) {
        sum = at::vec::fmadd(Floats(g[r * ldg + j]), load_lanes(w + j * k + i, k - i), sum);
      }
      store_lanes(sum, out + r * ld_out + i, k - i);
    }
  }
}

// out (+)= g.T v for g [rows, n] and v [rows, k].
inline void narrow_gradient(
    int64_t rows, int64_t n, int64_t k, const float* g, int64_t ldg, const float* v, int64_t ldv, float* out,
    bool accumulate) {
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t i = 0; i < k; i += Floats::size()) {
      std::array<Floats, 2> sums{accumulate ? load_lanes(out + j * k + i, k - i) : Floats(0.f), Floats(0.f)};
      for (int64_t r = 0; r < rows; ++r) {
        sums[r % 2] = at::vec::fmadd(Floats(g[r * ldg + j]), load_lanes(v + r * ldv + i, k - i), sums[r % 2]);
      }
      store_lanes(sums[0] + sums[1], out + j * k + i, k - i);
    }
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace xattr
