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

// An output of rows of kClasses numbers.
atm::OutputFacts answers(atm::Agreement agreement) {
  atm::OutputFacts output;
  output.name = "answers";
  output.shape = {kClasses};
  output.agreement = agreement;
  return output;
}

// Every comparison of `ours` with three rows that differ.
void both(bool wanted, const std::vector<float>& ours, const char* what) {
  const std::vector<float> theirs = {1, 2, 3, 3, 1, 2, 2, 3, 1};
  for (const atm::Agreement agreement :
       {atm::Agreement::kTop1, atm::Agreement::kDifference, atm::Agreement::kCosine}) {
    expect(wanted, atm::compare("answers", ours, theirs, answers(agreement), 1e-3), what);
  }
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
  const atm::OutputFacts ranked = answers(atm::Agreement::kTop1);
  expect(false, atm::compare("nothing", {}, {}, ranked, 1e-3), "nothing");
  expect(false, atm::compare("a tolerance that is none", same, same, ranked, kNan), "the same");
  const std::vector<float> none = {kNan, kNan, kNan};
  expect(false, atm::compare("NaN on both sides", none, none, ranked, 1e-3), "NaN");
  // What tells the agreements apart: another first choice, and another length.
  const std::vector<float> turned = {1, 2, 3}, longer = {2, 4, 6}, other = {1, 3, 2};
  const atm::OutputFacts numbers = answers(atm::Agreement::kDifference);
  const atm::OutputFacts angle = answers(atm::Agreement::kCosine);
  expect(true, atm::compare("numbers", other, {1, 2, 2.9f}, numbers, 1.0), "another first choice");
  expect(false, atm::compare("ranked", other, {1, 2, 2.9f}, ranked, 0.1), "another first choice");
  expect(true, atm::compare("angle", longer, turned, angle, 1e-6), "another length");
  expect(false, atm::compare("numbers", longer, turned, numbers, 1e-6), "another length");
  expect(false, atm::compare("angle", other, turned, angle, 1e-6), "another direction");
  std::printf("%d wrong verdicts\n", wrong);
  return wrong == 0 ? 0 : 1;
}
