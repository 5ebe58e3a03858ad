// atm_verdicts: what comparisons say of numbers that are alike, unlike, or none.
#include <cstdio>
#include <limits>

#include "../src/verdict.hpp"

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::size_t kClasses = 3;
int wrong = 0;

void expect(bool wanted, const atm::Comparison& found, const char* what) {
  if (found.ok() == wanted) return;
  std::fprintf(stderr, "%s: %s differs by %g, %g allowed: %s\n", found.what.c_str(), what,
               found.difference, found.allowed, found.ok() ? "ok" : "not ok");
  ++wrong;
}

// Both comparisons of `ours` with three rows that differ.
void both(bool wanted, const std::vector<float>& ours, const char* what) {
  const std::vector<float> theirs = {1, 2, 3, 3, 1, 2, 2, 3, 1};
  expect(wanted, atm::compare("logits", ours, theirs, kClasses, 1e-3), what);
  expect(wanted, atm::compare_angle("logits", ours, theirs, kClasses, 0.999), what);
}

}  // namespace

int main() {
  const std::vector<float> same = {1, 2, 3, 3, 1, 2, 2, 3, 1};
  both(true, same, "the same");
  for (std::size_t at = 0; at < same.size(); ++at) {
    for (const float value : {kNan, kInfinity, -kInfinity, 50.f}) {
      std::vector<float> ours = same;
      ours[at] = value;
      both(false, ours, "one bad number");
    }
  }
  for (std::size_t row = 0; row < same.size(); row += kClasses) {
    std::vector<float> ours = same;
    for (std::size_t k = row; k < row + kClasses; ++k) ours[k] = kNan;
    both(false, ours, "a row of NaN");
    for (std::size_t k = row; k < row + kClasses; ++k) ours[k] = 0;
    both(false, ours, "a row of zeros");
  }
  both(false, {}, "no row");
  both(false, {1, 2, 3}, "fewer rows");
  expect(false, atm::compare("nothing", {}, {}, kClasses, 1e-3), "nothing");
  expect(false, atm::compare("a tolerance that is none", same, same, kClasses, kNan), "the same");
  expect(false, atm::compare("NaN on both sides", {kNan}, {kNan}, 1, 1e-3), "NaN");
  std::printf("%d wrong verdicts\n", wrong);
  return wrong == 0 ? 0 : 1;
}
