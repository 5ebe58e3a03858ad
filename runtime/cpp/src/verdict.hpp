// Is what this machine computes what PyTorch computed? NaN anywhere says no.
#pragma once

#include "run.hpp"

namespace atm {

// The larger of two differences; NaN once either is.
double worse(double one, double other);

// Logits [rows, classes] by their largest difference, and the top-1 of every row.
Comparison compare(const std::string& what, const std::vector<float>& ours,
                   const std::vector<float>& theirs, std::size_t classes, double allowed);

// Of an engine, which may round more, the angle counts: 1 - the least cosine of a row.
Comparison compare_angle(const std::string& what, const std::vector<float>& ours,
                         const std::vector<float>& theirs, std::size_t classes, double least);

bool all_finite(const float* values, std::size_t count);

}  // namespace atm
