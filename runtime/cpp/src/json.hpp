// The one door for JSON: of bounded size and depth, each key once.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include <nlohmann/json.hpp>

#include "atm_runtime/atm_runtime.hpp"

namespace atm {

// std::exception of some kind where the text is no JSON, too long, too deep, or has a key twice.
nlohmann::json json_of(const std::uint8_t* begin, std::size_t size);

// A whole number of JSON; Error ATM_MANIFEST for fractions, words and numbers beyond the bounds.
std::int64_t whole(const nlohmann::json& value, std::int64_t least, std::int64_t most);

// One of the words that this runtime knows; Error ATM_MANIFEST for another.
std::string word(const nlohmann::json& value, std::initializer_list<const char*> known);

}  // namespace atm
