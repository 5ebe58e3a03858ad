#include "json.hpp"

#include <algorithm>
#include <set>

namespace atm {
namespace {

using nlohmann::json;

constexpr int kMostDepth = 32;
constexpr std::size_t kMostText = 16 << 20;

}  // namespace

json json_of(const std::uint8_t* begin, std::size_t size) {
  using Event = json::parse_event_t;
  if (size > kMostText) throw std::length_error("JSON of more than 16 MB");
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto check = [&](int depth, Event event, const json& value) {
    if (depth > kMostDepth) throw std::length_error("nested too deeply");
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key && !keys.back().insert(value.get<std::string>()).second) {
      throw std::invalid_argument("two values for one key");
    }
    return true;
  };
  return json::parse(begin, begin + size, check);
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

std::string word(const json& value, std::initializer_list<const char*> known) {
  const auto found = value.get<std::string>();
  if (std::find(known.begin(), known.end(), found) != known.end()) return found;
  throw Error(ATM_MANIFEST, "'" + found + "' is not known to this runtime");
}

}  // namespace atm
