#include "verdict.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace atm {
namespace {

std::size_t top1(const float* row, std::size_t classes) {
  return static_cast<std::size_t>(std::max_element(row, row + classes) - row);
}

// A top-1 whose lead is within the tolerance is a tie: either class is right.
bool tied(const float* row, std::size_t classes, double allowed) {
  const std::size_t best = top1(row, classes);
  for (std::size_t k = 0; k < classes; ++k) {
    if (k != best && row[best] - row[k] <= 2 * allowed) return true;
  }
  return false;
}

// What holds for no row at all, or for rows of another shape, is not shown.
double first_difference(const std::vector<float>& ours, const std::vector<float>& theirs,
                        std::size_t classes) {
  const bool fits = !ours.empty() && ours.size() == theirs.size() && ours.size() % classes == 0;
  return fits ? 0 : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace

double worse(double one, double other) { return std::isnan(one) || other <= one ? one : other; }

Comparison compare(const std::string& what, const std::vector<float>& ours,
                   const std::vector<float>& theirs, std::size_t classes, double allowed) {
  Comparison found{what, first_difference(ours, theirs, classes), allowed, true};
  if (std::isnan(found.difference)) return found;
  for (std::size_t i = 0; i < ours.size(); ++i) {
    found.difference = worse(found.difference, std::fabs(static_cast<double>(ours[i]) - theirs[i]));
  }
  for (std::size_t at = 0; at < ours.size(); at += classes) {
    const bool same = top1(&ours[at], classes) == top1(&theirs[at], classes);
    found.same_top1 = found.same_top1 && (same || tied(&theirs[at], classes, allowed));
  }
  return found;
}

Comparison compare_angle(const std::string& what, const std::vector<float>& ours,
                         const std::vector<float>& theirs, std::size_t classes, double least) {
  Comparison found{what + " (1 - cosine)", first_difference(ours, theirs, classes), 1 - least,
                   true};
  if (std::isnan(found.difference)) return found;
  for (std::size_t at = 0; at < ours.size(); at += classes) {
    double product = 0, one = 0, two = 0;
    for (std::size_t k = at; k < at + classes; ++k) {
      product += static_cast<double>(ours[k]) * theirs[k];
      one += static_cast<double>(ours[k]) * ours[k];
      two += static_cast<double>(theirs[k]) * theirs[k];
    }
    found.difference = worse(found.difference, 1 - product / std::sqrt(one * two));
  }
  return found;
}

bool all_finite(const float* values, std::size_t count) {
  return std::all_of(values, values + count, [](float value) { return std::isfinite(value); });
}

}  // namespace atm
