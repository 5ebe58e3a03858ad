#include "input.hpp"

#include <algorithm>
#include <cmath>

#include "json.hpp"

namespace atm {
namespace {

using nlohmann::json;

constexpr std::int64_t kLargestSide = 4096;
constexpr std::size_t kMostChannels = 1024;

std::size_t side(const json& value) {
  return static_cast<std::size_t>(whole(value, 1, kLargestSide));
}

void normalisation_of(const json& facts, Preprocessing& how) {
  const json &mean = facts.at("mean"), &deviation = facts.at("std");
  if (!mean.is_array() || !deviation.is_array() || mean.empty() || mean.size() > kMostChannels ||
      mean.size() != deviation.size()) {
    throw Error(ATM_MANIFEST, "mean and std");
  }
  for (std::size_t i = 0; i < mean.size(); ++i) {
    how.mean.push_back(mean.at(i).get<float>());
    how.deviation.push_back(deviation.at(i).get<float>());
    const bool usable = std::isfinite(how.mean[i]) && std::isfinite(how.deviation[i]);
    if (!usable || !(how.deviation[i] > 0)) throw Error(ATM_MANIFEST, "mean or std");
  }
}

Preprocessing preprocessing_of(const json& facts) {
  Preprocessing how;
  how.height = side(facts.at("size").at(0));
  how.width = side(facts.at("size").at(1));
  how.cover_height = side(facts.at("resize").at(0));
  how.cover_width = side(facts.at("resize").at(1));
  const double share = facts.at("crop_pct").get<double>();
  const auto covers = [share](std::size_t shown, std::size_t cover) {
    return std::floor(static_cast<double>(shown) / share) == static_cast<double>(cover);
  };
  if (!covers(how.height, how.cover_height) || !covers(how.width, how.cover_width)) {
    throw Error(ATM_MANIFEST, "resize and crop_pct");
  }
  how.interpolation =
      word(facts.at("interpolation"), {"bicubic", "bilinear", "lanczos", "nearest"});
  how.squash = word(facts.at("crop_mode"), {"center", "squash"}) == "squash";
  normalisation_of(facts, how);
  return how;
}

// "batch", then the lengths that the type and the preprocessing say.
bool fits(const json& stated, const InputFacts& input) {
  const auto shape = input.shape(1);
  if (!stated.is_array() || stated.size() != shape.size() || stated.at(0) != "batch") return false;
  for (std::size_t i = 1; i < shape.size(); ++i) {
    if (whole(stated.at(i), 1, kLargestSide) != shape[i]) return false;
  }
  return true;
}

}  // namespace

std::array<std::int64_t, 4> InputFacts::shape(std::size_t images) const {
  const auto n = static_cast<std::int64_t>(images);
  const auto channels = static_cast<std::int64_t>(preprocessing.channels());
  const auto height = static_cast<std::int64_t>(preprocessing.height);
  const auto width = static_cast<std::int64_t>(preprocessing.width);
  if (uint8) return {n, height, width, channels};
  return {n, channels, height, width};
}

std::size_t InputFacts::bytes() const {
  return preprocessing.numbers() * (uint8 ? 1 : sizeof(float));
}

InputFacts input_of(const json& manifest) {
  const json& facts = manifest.at("interface").at("input");
  InputFacts input;
  input.name = facts.at("name").get<std::string>();
  input.uint8 = word(facts.at("dtype"), {"float32", "uint8"}) == "uint8";
  input.preprocessing = preprocessing_of(manifest.at("preprocessing"));
  if (!fits(facts.at("shape"), input)) throw Error(ATM_MANIFEST, "interface.input.shape");
  return input;
}

}  // namespace atm
