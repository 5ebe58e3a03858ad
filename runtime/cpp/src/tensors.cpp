#include "tensors.hpp"

#include <cstring>

#include "json.hpp"

namespace atm {
namespace {

using nlohmann::json;

[[noreturn]] void damaged(const std::string& why) {
  throw Error(ATM_CHANGED_FILE, "the golden vectors are damaged (" + why + "); export again");
}

Tensor tensor_of(const json& facts, const std::uint8_t* begin, std::size_t room) {
  Tensor tensor;
  tensor.floats = facts.at("dtype").get<std::string>() == "F32";
  const std::size_t width = tensor.floats ? 4 : 1;
  tensor.shape = facts.at("shape").get<std::vector<std::size_t>>();
  const auto from = facts.at("data_offsets").at(0).get<std::size_t>();
  const auto to = facts.at("data_offsets").at(1).get<std::size_t>();
  if (from > to || to > room) damaged("offsets");
  std::size_t count = 1;
  for (const std::size_t n : tensor.shape) {
    if (n != 0 && count > room / n) damaged("shape");
    count *= n;
  }
  if (count * width != to - from) damaged("sizes");
  tensor.data = begin + from;
  tensor.count = count;
  return tensor;
}

}  // namespace

std::vector<float> Tensor::values() const {
  if (!floats) damaged("dtype");
  std::vector<float> found(count);
  if (count != 0) std::memcpy(found.data(), data, count * sizeof(float));
  return found;
}

std::map<std::string, Tensor> tensors_of(const Bytes& file) {
  std::uint64_t length = 0;
  if (file.size() < 8) damaged("length");
  for (std::size_t i = 0; i < 8; ++i) length |= std::uint64_t{file[i]} << (8 * i);
  if (length > file.size() - 8) damaged("length");
  const std::uint8_t* text = file.data() + 8;
  std::map<std::string, Tensor> found;
  try {
    const json header = json_of(text, length);
    for (const auto& [name, facts] : header.items()) {
      const std::string kind = name == "__metadata__" ? "" : facts.at("dtype").get<std::string>();
      if (kind != "U8" && kind != "F32") continue;
      found[name] = tensor_of(facts, text + length, file.size() - 8 - length);
    }
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    damaged(error.what());
  }
  return found;
}

}  // namespace atm
