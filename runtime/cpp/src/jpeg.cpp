// JPEG files by libjpeg-turbo, with the settings that Pillow uses (its defaults).
#include <csetjmp>
#include <cstdio>
#include <cstring>

#include <jpeglib.h>
#include <jerror.h>

#include "preprocess.hpp"

namespace atm {
namespace {

// libjpeg reports errors by not returning; what it jumps over holds no C++ object.
struct Handler {
  jpeg_error_mgr errors;
  jpeg_progress_mgr progress;
  std::jmp_buf escape;
  char message[JMSG_LENGTH_MAX];
  bool truncated;
};

Handler* handler_of(j_common_ptr info) { return static_cast<Handler*>(info->client_data); }

[[noreturn]] void fail(j_common_ptr info) {
  (*info->err->format_message)(info, handler_of(info)->message);
  std::longjmp(handler_of(info)->escape, 1);
}

void warn(j_common_ptr info, int level) {
  if (level < 0 && info->err->msg_code == JWRN_JPEG_EOF) handler_of(info)->truncated = true;
}

void keep_silent(j_common_ptr) {}

void limit_scans(j_common_ptr info) {
  if (reinterpret_cast<j_decompress_ptr>(info)->input_scan_number <= kMostScans) return;
  std::snprintf(handler_of(info)->message, JMSG_LENGTH_MAX, "too many scans");
  std::longjmp(handler_of(info)->escape, 1);
}

// Header and colours; false with a message in `handler`.
bool start(jpeg_decompress_struct& info, Handler& handler, const std::uint8_t* data,
           std::size_t size) {
  if (setjmp(handler.escape) != 0) return false;
  jpeg_create_decompress(&info);
  info.client_data = &handler;
  info.progress = &handler.progress;
  jpeg_mem_src(&info, data, static_cast<unsigned long>(size));
  jpeg_read_header(&info, TRUE);
  const bool four = info.jpeg_color_space == JCS_CMYK || info.jpeg_color_space == JCS_YCCK;
  info.out_color_space = four ? JCS_CMYK : JCS_RGB;
  jpeg_calc_output_dimensions(&info);
  return true;
}

bool read_rows(jpeg_decompress_struct& info, Handler& handler, std::uint8_t* rows) {
  if (setjmp(handler.escape) != 0) return false;
  jpeg_start_decompress(&info);
  const std::size_t stride = std::size_t{info.output_width} * info.output_components;
  while (info.output_scanline < info.output_height) {
    JSAMPROW row = rows + info.output_scanline * stride;
    jpeg_read_scanlines(&info, &row, 1);
  }
  return true;
}

// Pillow's CMYK to RGB; Adobe's files hold inverted values.
Bytes rgb_of_cmyk(const Bytes& cmyk, bool inverted) {
  Bytes rgb(cmyk.size() / 4 * kRgb);
  for (std::size_t i = 0; i < cmyk.size() / 4; ++i) {
    const int flip = inverted ? 255 : 0;
    const int white = 255 - (cmyk[4 * i + 3] ^ flip);
    for (std::size_t c = 0; c < kRgb; ++c) {
      const int product = (cmyk[4 * i + c] ^ flip) * white + 128;
      const int value = white - (((product >> 8) + product) >> 8);
      rgb[kRgb * i + c] = static_cast<std::uint8_t>(value < 0 ? 0 : value);
    }
  }
  return rgb;
}

struct Decoder {
  jpeg_decompress_struct info{};
  Handler handler{};
  Decoder() {
    info.err = jpeg_std_error(&handler.errors);
    info.client_data = &handler;
    handler.errors.error_exit = fail;
    handler.errors.emit_message = warn;
    handler.errors.output_message = keep_silent;
    handler.progress.progress_monitor = limit_scans;
  }
  ~Decoder() { jpeg_destroy_decompress(&info); }
  [[noreturn]] void refuse() const {
    throw Error(ATM_IMAGE, std::string("the image cannot be read: ") + handler.message);
  }
};

}  // namespace

Picture decode_jpeg(const std::uint8_t* data, std::size_t size, std::size_t most_pixels) {
  if (data == nullptr || size == 0) throw Error(ATM_IMAGE, "the image cannot be read: no bytes");
  if (size > kMostBytes) throw Error(ATM_IMAGE, "the image file is too large");
  Decoder decoder;
  jpeg_decompress_struct& info = decoder.info;
  if (!start(info, decoder.handler, data, size)) decoder.refuse();
  const std::size_t width = info.output_width, height = info.output_height;
  check_size(width, height);
  if (width > most_pixels / height) {
    throw Error(ATM_IMAGE, "the image has too many pixels: " + std::to_string(width) + " x " +
                               std::to_string(height));
  }
  const bool four = info.out_color_space == JCS_CMYK;
  Bytes rows(width * height * (four ? 4 : kRgb));
  if (!read_rows(info, decoder.handler, rows.data())) decoder.refuse();
  if (decoder.handler.truncated) throw Error(ATM_IMAGE, "the image is cut off");
  if (four) rows = rgb_of_cmyk(rows, info.saw_Adobe_marker != 0);
  return {width, height, std::move(rows)};
}

Picture read_jpeg(const std::string& path) {
  const Bytes data = read_file(path, ATM_IMAGE, kMostBytes);
  try {
    return decode_jpeg(data.data(), data.size());
  } catch (const Error& error) {
    throw Error(error.status(), path + ": " + error.what());
  }
}

}  // namespace atm
