// What the operators of max pooling share on the CPU: the division of the work.
#pragma once

#include <ATen/Parallel.h>

#include "cpu/isa/kernels.h"
#include "pool_geometry.h"

namespace xattr {

// body(begin, end) over `parts` parts that read `visits` elements each, in parallel where that pays.
template <typename Body>
void for_pool_parts(int64_t parts, int64_t visits, const Body& body) {
  constexpr int64_t worth_a_thread = 32768;
  at::parallel_for(0, parts, std::max<int64_t>(1, worth_a_thread / std::max<int64_t>(1, visits)), body);
}

}  // namespace xattr
