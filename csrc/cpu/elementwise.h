// The element-wise kernels on contiguous tensors, in parallel over the words of their masks.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include "checks.h"
#include "cpu/isa/kernels.h"

namespace xattr {

// Below this many words (32 elements each) a thread is not worth waking.
constexpr int64_t kGrainWords = 1024;

// body(n, begin, end) over all words of a tensor with rows of n elements.
template <typename Body>
void for_word_ranges(const at::Tensor& t, Body body) {
  const int64_t n = t.size(-1);
  if (t.numel() == 0) return;
  at::parallel_for(
      0, t.numel() / n * words_of(n), kGrainWords, [&](int64_t begin, int64_t end) { body(n, begin, end); });
}

struct SlopeArgument {
  at::Tensor values;
  const void* data = nullptr;
  bool by_column = false;

  explicit SlopeArgument(const std::optional<at::Tensor>& slope) {
    if (!slope) return;
    values = slope->contiguous();
    data = values.const_data_ptr();
    by_column = values.size(0) > 1;
  }
};

}  // namespace xattr
