// SHA-256 (FIPS 180-4).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace atm {

// Hex digest of `size` bytes.
std::string sha256(const void* data, std::size_t size);

}  // namespace atm
