#include "json.hpp"

namespace atm {
namespace {

using nlohmann::json;

constexpr int kMostDepth = 64;
constexpr std::size_t kMostText = 16 << 20;

}  // namespace

json json_of(const std::uint8_t* begin, std::size_t size) {
  if (size > kMostText) throw std::length_error("JSON of more than 16 MB");
  const auto shallow = [](int depth, json::parse_event_t, json&) {
    if (depth > kMostDepth) throw std::length_error("nested too deeply");
    return true;
  };
  return json::parse(begin, begin + size, shallow);
}

std::int64_t whole(const json& value, std::int64_t least, std::int64_t most) {
  const bool big = value.is_number_unsigned() && value.get<std::uint64_t>() > INT64_MAX;
  if (!value.is_number_integer() || big || value.get<std::int64_t>() < least ||
      value.get<std::int64_t>() > most) {
    throw Error(ATM_MANIFEST, "a number from " + std::to_string(least) + " to " +
                                  std::to_string(most) + " is expected, not " +
                                  std::string(value.type_name()));
  }
  return value.get<std::int64_t>();
}

}  // namespace atm
