// What a graph takes, as its manifest states it (as atm_export/inputs.py): the one place that knows
// of channels and layouts.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

namespace atm {

constexpr std::size_t kGrey = 1, kRgb = 3;  // channels that a picture has

// Input size, resize rule and normalisation; a mean and a deviation of each channel.
struct Preprocessing {
  std::size_t height = 0, width = 0;              // of the graph's input
  std::size_t cover_height = 0, cover_width = 0;  // before the crop
  std::string interpolation;                      // bicubic, bilinear, lanczos, nearest
  bool squash = false;                            // both sides, aspect ratio not kept
  std::vector<float> mean, deviation;

  std::size_t channels() const { return mean.size(); }
  std::size_t numbers() const { return height * width * channels(); }  // an image
  bool pictured() const { return channels() == kGrey || channels() == kRgb; }
};

// float32 [n, C, H, W], normalised, or uint8 [n, H, W, C], which the graph normalises.
struct InputFacts {
  std::string name;
  bool uint8 = false;
  Preprocessing preprocessing;

  std::array<std::int64_t, 4> shape(std::size_t images) const;
  std::size_t bytes() const;  // an image
};

// Error ATM_MANIFEST for what does not fit together; of JSON, any std::exception.
InputFacts input_of(const nlohmann::json& manifest);

}  // namespace atm
