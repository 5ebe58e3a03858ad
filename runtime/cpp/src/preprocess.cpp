#include "preprocess.hpp"

#include <algorithm>
#include <cmath>

namespace atm {
namespace {

// Python's round: halves go to the even neighbour, as nearbyint does by default.
std::int64_t rounded(double x) { return static_cast<std::int64_t>(std::nearbyint(x)); }

struct Size {
  std::size_t width, height;
};

std::size_t at_least_one(std::int64_t n) { return static_cast<std::size_t>(std::max<std::int64_t>(n, 1)); }

// Width and height after the resize, with the rounding of torchvision's and timm's rules.
Size resized(const Picture& picture, const Preprocessing& how) {
  if (how.squash) return {how.cover_width, how.cover_height};
  const auto width = static_cast<double>(picture.width);
  const auto height = static_cast<double>(picture.height);
  const auto cover_w = static_cast<double>(how.cover_width);
  const auto cover_h = static_cast<double>(how.cover_height);
  if (how.cover_height == how.cover_width) {
    if (picture.width <= picture.height) {
      return {how.cover_width, at_least_one(static_cast<std::int64_t>(cover_w * height / width))};
    }
    return {at_least_one(static_cast<std::int64_t>(cover_h * width / height)), how.cover_height};
  }
  const double ratio = std::min(height / cover_h, width / cover_w);
  return {at_least_one(rounded(width / ratio)), at_least_one(rounded(height / ratio))};
}

[[noreturn]] void refuse(const char* verb, std::size_t width, std::size_t height,
                         const std::string& why) {
  throw Error(ATM_IMAGE, std::string("the image ") + verb + " " + std::to_string(width) + " x " +
                             std::to_string(height) + " pixels: " + why);
}

// Pillow's "L" of RGB: ITU-R 601-2, in 16 fractional bits.
Bytes grey_of(const Bytes& rgb) {
  Bytes grey(rgb.size() / kRgb);
  for (std::size_t i = 0; i < grey.size(); ++i) {
    const std::uint8_t* pixel = rgb.data() + kRgb * i;
    const unsigned sum = pixel[0] * 19595u + pixel[1] * 38470u + pixel[2] * 7471u + 0x8000u;
    grey[i] = static_cast<std::uint8_t>(sum >> 16);
  }
  return grey;
}

// A picture as a model of so many channels sees it.
Raster raster_of(const Picture& picture, const Preprocessing& how) {
  if (!how.pictured()) {
    throw Error(ATM_ARGUMENT, "the model takes " + std::to_string(how.channels()) +
                                  " channels, which no picture has; give arrays");
  }
  const bool grey = how.channels() == kGrey;
  return {picture.width, picture.height, how.channels(), grey ? grey_of(picture.rgb) : picture.rgb};
}

}  // namespace

void check_size(std::size_t width, std::size_t height) {
  if (width == 0 || height == 0) refuse("is", width, height, "it is empty");
  if (width > kMostPixels / height) {
    refuse("is", width, height, std::to_string(kMostPixels) + " in all at most; make it smaller");
  }
  if (std::max(width, height) > kMostAspect * std::min(width, height)) {
    refuse("is", width, height, "too long and thin, " + std::to_string(kMostAspect) +
                                    " to 1 at most; crop it");
  }
}

Bytes crop(const Picture& picture, const Preprocessing& how) {
  check_size(picture.width, picture.height);
  if (picture.rgb.size() != picture.width * picture.height * kRgb) {
    throw Error(ATM_IMAGE, "a picture's bytes do not fit its width and height");
  }
  const Size size = resized(picture, how);
  if (size.width > kMostResized / size.height) {
    refuse("would be resized to", size.width, size.height,
           std::to_string(kMostResized) + " in all at most; crop it");
  }
  const Raster whole =
      resize(raster_of(picture, how), size.width, size.height, how.interpolation);
  const auto from_top = static_cast<double>(whole.height) - static_cast<double>(how.height);
  const auto from_left = static_cast<double>(whole.width) - static_cast<double>(how.width);
  const std::int64_t top = rounded(from_top / 2), left = rounded(from_left / 2);
  const auto step = static_cast<std::int64_t>(how.channels());
  Bytes pixels(how.numbers(), 0);  // black beyond the picture, as in Pillow
  for (std::size_t y = 0; y < how.height; ++y) {
    const std::int64_t row = top + static_cast<std::int64_t>(y);
    if (row < 0 || row >= static_cast<std::int64_t>(whole.height)) continue;
    const std::int64_t begin = std::max<std::int64_t>(left, 0);
    const std::int64_t end = std::min(left + static_cast<std::int64_t>(how.width),
                                      static_cast<std::int64_t>(whole.width));
    const auto line = whole.pixels.begin() + row * static_cast<std::int64_t>(whole.width) * step;
    const auto at = static_cast<std::int64_t>(y * how.width) + begin - left;
    const auto to = pixels.begin() + at * step;
    if (begin < end) std::copy(line + begin * step, line + end * step, to);
  }
  return pixels;
}

std::vector<float> normalize(const std::uint8_t* pixels, std::size_t images,
                             const Preprocessing& how) {
  const std::size_t area = how.height * how.width, channels = how.channels();
  std::vector<float> image(images * how.numbers());
  for (std::size_t i = 0; i < images; ++i) {
    for (std::size_t c = 0; c < channels; ++c) {
      const std::uint8_t* from = pixels + i * how.numbers() + c;
      float* to = image.data() + (i * channels + c) * area;
      for (std::size_t p = 0; p < area; ++p) {
        to[p] = (static_cast<float>(from[channels * p]) / 255.0f - how.mean[c]) / how.deviation[c];
      }
    }
  }
  return image;
}

}  // namespace atm
