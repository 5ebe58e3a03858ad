// Is what this machine computes what PyTorch computed? NaN anywhere says no.
#pragma once

#include "run.hpp"

namespace atm {

// The larger of two differences; NaN once either is.
double worse(double one, double other);

// Answers to images by their output's agreement.
Comparison compare(const std::string& what, const std::vector<float>& ours,
                   const std::vector<float>& theirs, const OutputFacts& output, double allowed);

// Rows of `length` numbers by their angle: 1 - the least cosine of two.
Comparison compare_angle(const std::string& what, const std::vector<float>& ours,
                         const std::vector<float>& theirs, std::size_t length, double allowed);

bool all_finite(const float* values, std::size_t count);

}  // namespace atm
