#include "c_options.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>

namespace atm {
namespace {

// Where a caller's struct may end: behind any field. Append with every new one.
constexpr std::size_t kEnds[] = {
    offsetof(atm_options, threads),    offsetof(atm_options, cuda),
    offsetof(atm_options, no_warm_up), offsetof(atm_options, allow_unproven),
    sizeof(atm_options),
};
constexpr std::size_t kMostSize = 4096;  // what lies behind a true size is read

// Padding would be read as the field that a later version puts there.
static_assert(offsetof(atm_options, size) == 0 &&
              sizeof(atm_options) == sizeof(std::size_t) + sizeof(char*) + 4 * sizeof(int));

[[noreturn]] void refuse(std::size_t size, const std::string& why) {
  throw Error(ATM_ARGUMENT, "atm_options of " + std::to_string(size) + " bytes: " + why);
}

void check_size(std::size_t size) {
  const bool known = std::find(std::begin(kEnds), std::end(kEnds), size) != std::end(kEnds);
  if (known || (size > sizeof(atm_options) && size <= kMostSize)) return;
  refuse(size, "set its size to sizeof(atm_options), as ATM_OPTIONS_INIT does");
}

void check_unknown(const atm_options* from, std::size_t size) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(from);
  if (std::all_of(bytes + std::min(size, sizeof(atm_options)), bytes + size,
                  [](unsigned char byte) { return byte == 0; })) {
    return;
  }
  refuse(size, "an option is set that version " ATM_VERSION " of the library does not know");
}

}  // namespace

Options options_of(const atm_options* from) {
  Options options;
  if (from == nullptr) return options;
  std::size_t size = 0;
  std::memcpy(&size, from, sizeof size);
  check_size(size);
  check_unknown(from, size);
  atm_options given = ATM_OPTIONS_INIT;
  std::memcpy(&given, from, std::min(size, sizeof given));
  if (given.engine != nullptr) options.engine = given.engine;
  options.threads = given.threads;
  options.cuda = given.cuda != 0;
  options.warm_up = given.no_warm_up == 0;
  options.allow_unproven = given.allow_unproven != 0;
  return options;
}

}  // namespace atm
