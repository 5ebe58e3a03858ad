// From a picture to the graph's input, as Pillow and atm_export/preprocess.py do it.
#pragma once

#include "run.hpp"

namespace atm {

// Error ATM_IMAGE where a picture has no pixels, too many, or is too long and thin.
void check_size(std::size_t width, std::size_t height);

// Resize and centre-crop: uint8 [height, width, 3] of the graph's input.
Bytes crop(const Picture& picture, const Preprocessing& how);

// Pillow's antialiased resampling of 8-bit RGB, in its fixed-point arithmetic.
Picture resize(const Picture& picture, std::size_t width, std::size_t height,
               const std::string& interpolation);

// uint8 [n, height, width, 3] to normalised float32 [n, 3, height, width].
std::vector<float> normalize(const std::uint8_t* pixels, std::size_t images,
                             const Preprocessing& how);

}  // namespace atm
