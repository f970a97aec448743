// What relu_mask, mask_mul and add_relu_mask share: which words and elements a thread has to do with.
//
// Tensors are rows of n elements with row_words words each, and the words of all rows are counted through. A warp takes
// kSteps times as many words as its vectors fill at once. Where rows are aligned, the lanes of a word hold a vector
// each and gather its bits by shuffles; a lane then keeps the word of one step, so that a warp writes (or reads) all of
// its words at once. Elsewhere ("ragged") a lane holds one element of a word, and its bits are a ballot.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/vector.cuh"

namespace xattr::cuda {

enum SlopeKind : int { kNoSlope, kOneSlope, kSlopes };  // of shape None, [1] and [N]

struct ElementwiseConfig {
  static constexpr int kThreads = 256;
  static constexpr int kSteps = 4;        // words of a lane, where it holds vectors
  static constexpr int kRaggedSteps = 8;  // words of a warp, where a lane holds elements
};

// Blocks of a multiprocessor at least, which says what registers a thread may have: a vector of slopes takes some more.
template <int kSlope>
constexpr int kBlocks = kSlope == kSlopes ? 2 : 4;

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int64_t kMostWords = (int64_t{1} << 31) - 4096;  // that a launch counts, some beyond the last included

// Where a word's elements lie.
struct Span {
  int64_t offset, column, left;  // of the lane's first element; left: elements from there to the end of its row
};

// `within`: the lane's first element in word `word`. No element is left of a word that there is not.
__device__ __forceinline__ Span span_of(uint32_t word, int within, int64_t n, uint32_t row_words, uint32_t words) {
  const uint32_t row = row_words == words ? 0 : word / row_words;
  const int64_t column = static_cast<int64_t>(word - row * row_words) * 32 + within;
  return {row * n + column, column, word < words ? n - column : 0};
}

__device__ __forceinline__ uint32_t warp_index() {
  return blockIdx.x * (ElementwiseConfig::kThreads / 32) + threadIdx.x / 32;
}

// The lane's vector at `source`, zeros where there is none.
template <typename T>
__device__ __forceinline__ Vector<T> load_at(const T* source, const Span& span) {
  return span.left > 0 ? load<T, kVector<T>>(source) : Vector<T>{};
}

template <typename T>
__device__ __forceinline__ void store_at(T* target, const Span& span, const Vector<T>& values) {
  if (span.left > 0) store(target, values);
}

// slope * t, rounded once; zero without a slope.
template <typename T, int kSlope>
__device__ __forceinline__ T sloped(T t, float slope) {
  return kSlope == kNoSlope ? narrowed<T>(0.0f) : narrowed<T>(slope * widened(t));
}

// Whether the derivative of the activation is one. Of NaN it is in ReLU alone, as in PyTorch.
template <typename T, int kSlope>
__device__ __forceinline__ bool positive(T z) {
  return kSlope == kNoSlope ? !(widened(z) <= 0.0f) : widened(z) > 0.0f;
}

// The factors of a vector's elements.
template <typename T, int kSlope>
struct Factors {
  Vector<T> of;

  __device__ __forceinline__ Factors(const T* slope, const Span& span) {
    if (kSlope == kOneSlope) of.at[0] = slope[0];
    if (kSlope == kSlopes) of = load_at(slope + span.column, span);
  }
  __device__ __forceinline__ float at(int i) const {
    return kSlope == kNoSlope ? 0.0f : widened(of.at[kSlope == kSlopes ? i : 0]);
  }
};

template <typename T, int kSlope>
__device__ __forceinline__ float factor(const T* slope, const Span& span) {
  if (kSlope == kNoSlope || span.left <= 0) return 0.0f;
  return widened(slope[kSlope == kSlopes ? span.column : 0]);
}

// The lanes of a word, the words that a warp's vectors fill at once, and who keeps which.
template <typename T>
struct Lanes {
  static constexpr int kOfWord = 32 / kVector<T>;
  static constexpr int kWords = 32 / kOfWord;
  static_assert(ElementwiseConfig::kSteps <= kOfWord, "a lane keeps the word of one step");
  int lane, group, member;
  uint32_t first;  // word of the warp

  __device__ __forceinline__ Lanes()
      : lane(threadIdx.x % 32),
        group(lane / kOfWord),
        member(lane % kOfWord),
        first(warp_index() * (kWords * ElementwiseConfig::kSteps)) {}
  __device__ __forceinline__ uint32_t word(int step) const { return first + step * kWords + group; }
  // The lane reads or writes the word of its own step, if there is one.
  __device__ __forceinline__ bool keeps(uint32_t words) const {
    return member < ElementwiseConfig::kSteps && word(member) < words;
  }
};

// Activation of rows of whole vectors. values(span): the vector of pre-activations there.
template <typename T, int kSlope, typename Values>
__device__ __forceinline__ void activate_vectors(
    const Values& values, const T* slope, T* h, int32_t* bits, int64_t n, uint32_t row_words, uint32_t words) {
  constexpr int kSteps = ElementwiseConfig::kSteps;
  const Lanes<T> lanes;
  Span spans[kSteps];
  Vector<T> z[kSteps];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    spans[step] = span_of(lanes.word(step), lanes.member * kVector<T>, n, row_words, words);
    z[step] = values(spans[step]);
  }
  uint32_t kept = 0;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const Factors<T, kSlope> factors(slope, spans[step]);
    uint32_t word = 0;
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      const T value = z[step].at[i];
      const bool on = positive<T, kSlope>(value);
      z[step].at[i] = on ? value : sloped<T, kSlope>(value, factors.at(i));
      word |= static_cast<uint32_t>(on) << i;
    }
    store_at(h + spans[step].offset, spans[step], z[step]);
    word <<= lanes.member * kVector<T>;
#pragma unroll
    for (int apart = 1; apart < Lanes<T>::kOfWord; apart *= 2) word |= __shfl_xor_sync(kAllLanes, word, apart);
    if (lanes.member == step) kept = word;
  }
  if (lanes.keeps(words)) bits[lanes.word(lanes.member)] = static_cast<int32_t>(kept);
}

// Activation of rows of any length. value(offset): the pre-activation there.
template <typename T, int kSlope, typename Value>
__device__ __forceinline__ void activate_ragged(
    const Value& value, const T* slope, T* h, int32_t* bits, int64_t n, uint32_t row_words, uint32_t words) {
  constexpr int kSteps = ElementwiseConfig::kRaggedSteps;
  const int lane = threadIdx.x % 32;
  const uint32_t first = warp_index() * kSteps;
  Span spans[kSteps];
  T z[kSteps];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    spans[step] = span_of(first + step, lane, n, row_words, words);
    z[step] = spans[step].left > 0 ? value(spans[step].offset) : narrowed<T>(0.0f);
  }
  uint32_t kept = 0;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const bool on = positive<T, kSlope>(z[step]) && spans[step].left > 0;
    const T other = sloped<T, kSlope>(z[step], factor<T, kSlope>(slope, spans[step]));
    if (spans[step].left > 0) h[spans[step].offset] = on ? z[step] : other;
    const uint32_t word = __ballot_sync(kAllLanes, on);
    if (lane == step) kept = word;
  }
  if (lane < kSteps && first + lane < words) bits[first + lane] = static_cast<int32_t>(kept);
}

// Rows [rows, n] as the kernels count them, and whether the lanes may hold vectors.
struct Rows {
  int64_t n;
  uint32_t row_words, words;
  bool vectors;
};

// Whether a launch can count the words of so many rows.
inline bool countable(int64_t rows, int64_t n) {
  return n == 0 || rows * ((n + 31) / 32) <= kMostWords;
}

// Rows of whole words are one long row, unless each column has a slope of its own.
inline Rows rows_of(Dtype dtype, int64_t rows, int64_t n, SlopeKind kind, bool aligned) {
  if (n % 32 == 0 && kind != kSlopes) {
    n *= rows;
    rows = 1;
  }
  const int64_t row_words = (n + 31) / 32, vector = dtype == Dtype::kFloat ? 4 : 8;
  return {n, static_cast<uint32_t>(row_words), static_cast<uint32_t>(rows * row_words), aligned && n % vector == 0};
}

// Blocks of a launch over these rows.
template <typename T>
unsigned blocks_of(const Rows& rows) {
  const int words = rows.vectors ? Lanes<T>::kWords * ElementwiseConfig::kSteps : ElementwiseConfig::kRaggedSteps;
  return blocks_of(rows.words, words * (ElementwiseConfig::kThreads / 32));
}

// body(T{}, kind) with the element type and, as a constant, the kind of slope.
template <typename Body>
void for_elements(Dtype dtype, SlopeKind kind, const Body& body) {
  for_dtype(dtype, [&](auto element) {
    if (kind == kNoSlope) return body(element, std::integral_constant<int, kNoSlope>{});
    if (kind == kOneSlope) return body(element, std::integral_constant<int, kOneSlope>{});
    return body(element, std::integral_constant<int, kSlopes>{});
  });
}

}  // namespace xattr::cuda
