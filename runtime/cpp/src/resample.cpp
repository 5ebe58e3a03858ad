// After Pillow's Resample.c: coefficients in double, then integers with 22 fractional bits, a
// horizontal pass and a vertical pass, each rounded to 8 bits.
#include <algorithm>
#include <array>
#include <cmath>

#include "preprocess.hpp"

namespace atm {
namespace {

constexpr int kBits = 32 - 8 - 2;
constexpr double kPi = 3.14159265358979323846;

double bilinear(double x) {
  x = std::fabs(x);
  return x < 1 ? 1 - x : 0;
}

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

double sinc(double x) { return x == 0 ? 1 : std::sin(x * kPi) / (x * kPi); }

double lanczos(double x) { return -3 <= x && x < 3 ? sinc(x) * sinc(x / 3) : 0; }

struct Filter {
  double (*weight)(double);
  double support;
};

Filter filter_of(const std::string& name) {
  if (name == "bicubic") return {bicubic, 2};
  if (name == "bilinear") return {bilinear, 1};
  if (name == "lanczos") return {lanczos, 3};
  throw Error(ATM_MANIFEST, "interpolation '" + name + "' is not known to this runtime");
}

// The inputs that one output pixel is made of: `count` from `first` on, and their weights.
struct Window {
  std::size_t first = 0;
  std::vector<std::int32_t> weights;
};

std::vector<Window> windows(std::size_t in, std::size_t out, const Filter& filter) {
  const double scale = static_cast<double>(in) / static_cast<double>(out);
  const double stretch = std::max(scale, 1.0);
  const double support = filter.support * stretch;
  std::vector<Window> found(out);
  for (std::size_t i = 0; i < out; ++i) {
    const double center = (static_cast<double>(i) + 0.5) * scale;
    const auto first = std::max<std::int64_t>(static_cast<std::int64_t>(center - support + 0.5), 0);
    const auto last = std::min<std::int64_t>(static_cast<std::int64_t>(center + support + 0.5),
                                             static_cast<std::int64_t>(in));
    std::vector<double> weights;
    double sum = 0;
    for (std::int64_t k = first; k < last; ++k) {
      weights.push_back(filter.weight((static_cast<double>(k) - center + 0.5) / stretch));
      sum += weights.back();
    }
    found[i].first = static_cast<std::size_t>(first);
    for (const double weight : weights) {
      const double fixed = (sum != 0 ? weight / sum : weight) * (1 << kBits);
      found[i].weights.push_back(static_cast<std::int32_t>(fixed < 0 ? fixed - 0.5 : fixed + 0.5));
    }
  }
  return found;
}

std::uint8_t clip(std::int32_t sum) {
  return static_cast<std::uint8_t>(std::clamp(sum >> kBits, 0, 255));
}

// Resample `lines` runs of pixels; `step` and `stride` lead from pixel to pixel and run to run.
struct Axis {
  std::size_t lines, in_step, in_stride, out_step, out_stride;
};

// A number of channels that the compiler knows: the innermost loop.
template <std::size_t Channels>
void resample(const std::uint8_t* in, std::uint8_t* out, const std::vector<Window>& by,
              const Axis& axis) {
  for (std::size_t line = 0; line < axis.lines; ++line) {
    for (std::size_t i = 0; i < by.size(); ++i) {
      const std::uint8_t* from = in + line * axis.in_stride + by[i].first * axis.in_step;
      std::array<std::int32_t, Channels> sum;
      sum.fill(1 << (kBits - 1));
      for (const std::int32_t weight : by[i].weights) {
        for (std::size_t c = 0; c < Channels; ++c) sum[c] += weight * from[c];
        from += axis.in_step;
      }
      std::uint8_t* to = out + line * axis.out_stride + i * axis.out_step;
      for (std::size_t c = 0; c < Channels; ++c) to[c] = clip(sum[c]);
    }
  }
}

Raster resampled(const Raster& from, std::size_t width, std::size_t height,
                 const std::vector<Window>& by, const Axis& axis) {
  Raster to{width, height, from.channels, Bytes(width * height * from.channels)};
  const auto work = from.channels == kGrey ? resample<kGrey> : resample<kRgb>;
  work(from.pixels.data(), to.pixels.data(), by, axis);
  return to;
}

Raster across(const Raster& from, std::size_t width, const Filter& filter) {
  const std::size_t n = from.channels;
  return resampled(from, width, from.height, windows(from.width, width, filter),
                   {from.height, n, from.width * n, n, width * n});
}

Raster down(const Raster& from, std::size_t height, const Filter& filter) {
  const std::size_t n = from.channels, row = from.width * n;
  return resampled(from, from.width, height, windows(from.height, height, filter),
                   {from.width, row, n, row, n});
}

// The inputs that `out` nearest outputs show; Pillow adds step to step, so its roundings add up.
std::vector<std::size_t> nearest_places(std::size_t in, std::size_t out) {
  const double step = static_cast<double>(in) / static_cast<double>(out);
  std::vector<std::size_t> places(out);
  double at = step * 0.5;
  for (std::size_t& place : places) {
    place = std::min(static_cast<std::size_t>(at), in - 1);
    at += step;
  }
  return places;
}

Raster nearest(const Raster& from, std::size_t width, std::size_t height) {
  const std::size_t n = from.channels;
  Raster to{width, height, n, {}};
  to.pixels.reserve(width * height * n);
  const auto columns = nearest_places(from.width, width);
  for (const std::size_t row : nearest_places(from.height, height)) {
    for (const std::size_t column : columns) {
      const std::uint8_t* pixel = from.pixels.data() + (row * from.width + column) * n;
      to.pixels.insert(to.pixels.end(), pixel, pixel + n);
    }
  }
  return to;
}

// Since its version 13 Pillow begins with the height where that shrinks by far more than the width;
// each pass rounds, so the order shows.
bool height_first(const Raster& raster, std::size_t width, std::size_t height) {
  const auto change = [](std::size_t from, std::size_t to) {
    return static_cast<std::int64_t>(from) - static_cast<std::int64_t>(to);
  };
  const std::int64_t less = change(raster.height, height);
  return less > 0 && less > 2 * change(raster.width, width);
}

}  // namespace

Raster resize(Raster raster, std::size_t width, std::size_t height,
              const std::string& interpolation) {
  if (raster.width == width && raster.height == height) return raster;
  if (interpolation == "nearest") return nearest(raster, width, height);
  const Filter filter = filter_of(interpolation);
  if (height_first(raster, width, height)) raster = down(raster, height, filter);
  if (width != raster.width) raster = across(raster, width, filter);
  if (height != raster.height) raster = down(raster, height, filter);
  return raster;
}

}  // namespace atm
