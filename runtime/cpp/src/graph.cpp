#include "graph.hpp"

namespace atm {
namespace {

constexpr int kMostNested = 32;

// Messages of onnx.proto whose fields lead to tensors (github.com/onnx/onnx).
enum class Message { none, model, training, function, graph, node, attribute, sparse, tensor, entry };

Message leads_to(Message message, std::uint64_t field) {
  switch (message) {
    case Message::model:
      if (field == 7) return Message::graph;
      if (field == 20) return Message::training;
      return field == 25 ? Message::function : Message::none;
    case Message::training:
      return field == 1 || field == 2 ? Message::graph : Message::none;
    case Message::function:
      if (field == 7) return Message::node;
      return field == 11 ? Message::attribute : Message::none;
    case Message::graph:
      if (field == 1) return Message::node;
      if (field == 5) return Message::tensor;
      return field == 15 ? Message::sparse : Message::none;
    case Message::node:
      return field == 5 ? Message::attribute : Message::none;
    case Message::attribute:
      if (field == 5 || field == 10) return Message::tensor;
      if (field == 6 || field == 11) return Message::graph;
      return field == 22 || field == 23 ? Message::sparse : Message::none;
    case Message::sparse:
      return field == 1 || field == 2 ? Message::tensor : Message::none;
    case Message::tensor:
      return field == 13 ? Message::entry : Message::none;
    default:
      return Message::none;
  }
}

[[noreturn]] void damaged(const char* why) {
  throw Error(ATM_CHANGED_FILE, std::string("the graph is no ONNX file (") + why + "); export again");
}

// The wire format of protocol buffers, field by field.
class Fields {
 public:
  Fields(const std::uint8_t* begin, const std::uint8_t* end) : at_(begin), end_(end) {}

  // The next field that has a length; false at the end. Others are passed over.
  bool next() {
    while (at_ != end_) {
      const std::uint64_t key = number();
      number_ = key >> 3;
      switch (key & 7) {
        case 0:
          number();
          break;
        case 1:
          skip(8);
          break;
        case 5:
          skip(4);
          break;
        case 2: {
          const std::uint64_t size = number();
          begin_ = at_;
          skip(size);
          return true;
        }
        default:
          damaged("fields of an unknown kind");
      }
    }
    return false;
  }

  std::uint64_t field() const { return number_; }
  const std::uint8_t* begin() const { return begin_; }
  const std::uint8_t* end() const { return at_; }
  std::string text() const { return {begin_, at_}; }

 private:
  std::uint64_t number() {
    std::uint64_t value = 0;
    for (int shift = 0; shift < 70; shift += 7) {
      if (at_ == end_) damaged("it ends within a number");
      const std::uint8_t byte = *at_++;
      if (shift < 64) value |= std::uint64_t{byte & 127u} << shift;
      if (byte < 128) return value;
    }
    damaged("a number is too long");
  }

  void skip(std::uint64_t size) {
    if (size > static_cast<std::uint64_t>(end_ - at_)) damaged("a field is longer than the file");
    at_ += size;
  }

  const std::uint8_t* at_;
  const std::uint8_t* end_;
  const std::uint8_t* begin_ = nullptr;
  std::uint64_t number_ = 0;
};

void find(const std::uint8_t* begin, const std::uint8_t* end, Message message, int depth,
          std::set<std::string>& found) {
  if (depth > kMostNested) damaged("it is nested too deeply");
  if (message == Message::entry) {
    std::string key, value;
    for (Fields fields(begin, end); fields.next();) {
      if (fields.field() == 1) key = fields.text();
      if (fields.field() == 2) value = fields.text();
    }
    if (key == "location") found.insert(value);
    return;
  }
  for (Fields fields(begin, end); fields.next();) {
    const Message inner = leads_to(message, fields.field());
    if (inner != Message::none) find(fields.begin(), fields.end(), inner, depth + 1, found);
  }
}

}  // namespace

std::set<std::string> locations(const Bytes& graph) {
  std::set<std::string> found;
  find(graph.data(), graph.data() + graph.size(), Message::model, 0, found);
  return found;
}

SavedGraph read_graph(const Run& run, const std::string& name) {
  SavedGraph saved;
  saved.graph = run.read(name);
  for (const std::string& file : locations(saved.graph)) saved.beside[file] = run.read(file);
  return saved;
}

}  // namespace atm
