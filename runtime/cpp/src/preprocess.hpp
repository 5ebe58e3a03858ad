// From a picture to the graph's input, as Pillow and atm_export/preprocess.py do it.
#pragma once

#include "run.hpp"

namespace atm {

// Error ATM_IMAGE where a picture has no pixels, too many, or is too long and thin.
void check_size(std::size_t width, std::size_t height);

// 8 bits a channel, rows from top to bottom, channels interleaved: [height, width, channels].
struct Raster {
  std::size_t width = 0, height = 0, channels = 0;
  Bytes pixels;
};

// Resize and centre-crop: uint8 [height, width, channels] of the graph's input. Error ATM_ARGUMENT
// for a model of other than one channel, which sees grey, or three.
Bytes crop(const Picture& picture, const Preprocessing& how);

// Pillow's antialiased resampling, in its fixed-point arithmetic.
Raster resize(Raster raster, std::size_t width, std::size_t height,
              const std::string& interpolation);

// uint8 [n, height, width, channels] to normalised float32 [n, channels, height, width].
std::vector<float> normalize(const std::uint8_t* pixels, std::size_t images,
                             const Preprocessing& how);

}  // namespace atm
