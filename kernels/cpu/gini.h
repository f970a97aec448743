// gini: coefficient and gradient of a vector that has been sorted. Twin of reference/gini.py.
#pragma once

#include <cmath>
#include <cstdint>

namespace xattr {

// A compensated sum (Neumaier 1974): as exact as if it were taken with twice the digits.
class Sum {
 public:
  void add(double x) {
    const double next = sum_ + x;
    lost_ += std::abs(sum_) >= std::abs(x) ? (sum_ - next) + x : (x - next) + sum_;
    sum_ = next;
  }
  double value() const { return std::isfinite(sum_) ? sum_ + lost_ : sum_; }

 private:
  double sum_ = 0, lost_ = 0;
};

// sorted: the n > 0 values in ascending order; order[i]: where sorted[i] stood before. Writes the gradient in the
// original order and returns the coefficient. Elements that tie share one rank.
template <typename T>
double gini(const T* sorted, const int64_t* order, int64_t n, T* gradient) {
  const auto for_ties = [&](auto body) {
    for (int64_t first = 0, last = 0; first < n; first = last) {
      while (last < n && (last == first || sorted[last] == sorted[first])) ++last;
      body(first, last, static_cast<double>(first + last - n));  // elements below minus elements above
    }
  };
  Sum all, by_rank;
  for_ties([&](int64_t first, int64_t last, double rank) {
    const double group = static_cast<double>(sorted[first]) * static_cast<double>(last - first);
    all.add(group);
    by_rank.add(rank * group);
  });
  const double total = all.value();
  const double value = total == 0 ? 0 : by_rank.value() / (static_cast<double>(n) * total);
  for_ties([&](int64_t first, int64_t last, double rank) {
    const double slope = total == 0 ? 0 : (rank / static_cast<double>(n) - value) / total;
    for (int64_t i = first; i < last; ++i) gradient[order[i]] = static_cast<T>(slope);
  });
  return value;
}

}  // namespace xattr
