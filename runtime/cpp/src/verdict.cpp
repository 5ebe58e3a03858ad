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
                        std::size_t row) {
  const bool fits = !ours.empty() && ours.size() == theirs.size() && ours.size() % row == 0;
  return fits ? 0 : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace

double worse(double one, double other) { return std::isnan(one) || other <= one ? one : other; }

Comparison compare(const std::string& what, const std::vector<float>& ours,
                   const std::vector<float>& theirs, const OutputFacts& output, double allowed) {
  if (output.agreement == Agreement::kCosine) {
    return compare_angle(what, ours, theirs, output.length(), allowed);
  }
  const std::size_t row = output.row();
  Comparison found{what, first_difference(ours, theirs, row), allowed, true};
  if (std::isnan(found.difference)) return found;
  for (std::size_t i = 0; i < ours.size(); ++i) {
    found.difference = worse(found.difference, std::fabs(static_cast<double>(ours[i]) - theirs[i]));
  }
  if (output.agreement != Agreement::kTop1) return found;
  for (std::size_t at = 0; at < ours.size(); at += row) {
    const bool same = top1(&ours[at], row) == top1(&theirs[at], row);
    found.same_top1 = found.same_top1 && (same || tied(&theirs[at], row, allowed));
  }
  return found;
}

Comparison compare_angle(const std::string& what, const std::vector<float>& ours,
                         const std::vector<float>& theirs, std::size_t length, double allowed) {
  Comparison found{what + " (1 - cosine)", first_difference(ours, theirs, length), allowed, true};
  if (std::isnan(found.difference)) return found;
  for (std::size_t at = 0; at < ours.size(); at += length) {
    double product = 0, one = 0, two = 0;
    for (std::size_t k = at; k < at + length; ++k) {
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
