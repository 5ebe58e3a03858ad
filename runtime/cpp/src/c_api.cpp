// The C boundary: every call catches everything, and says it by status and by words.
#include <cstring>
#include <new>

#include "c_options.hpp"
#include "input.hpp"

struct atm_session {
  atm_session(const char* folder, const atm::Options& options) : session(folder, options) {
    for (std::size_t i = 0; i < session.classes(); ++i) labels.push_back(session.label(i));
  }
  atm::Session session;
  std::vector<std::string> labels;
  std::vector<atm::Output> outputs = session.outputs();

  // The output that ranks classes; Error ATM_ARGUMENT where none does.
  const std::string& ranks() const {
    if (!session.ranks().empty()) return session.ranks();
    throw atm::Error(ATM_ARGUMENT, "the task '" + session.task() + "' ranks no classes; take " +
                                       "atm_run_output");
  }
  const std::string& name(std::size_t index) const {
    if (index < outputs.size()) return outputs[index].name;
    throw atm::Error(ATM_ARGUMENT, "output " + std::to_string(index) + ": the run has " +
                                       std::to_string(outputs.size()));
  }
};

namespace {

constexpr std::size_t kMessage = 1024;
thread_local char last_error[kMessage] = "";

void say(const char* message) noexcept {
  std::strncpy(last_error, message, kMessage - 1);
  last_error[kMessage - 1] = '\0';
}

template <typename Work>
atm_status guarded(Work&& work) noexcept {
  try {
    say("");
    work();
    return ATM_OK;
  } catch (const atm::Error& error) {
    say(error.what());
    return error.status();
  } catch (const std::bad_alloc&) {
    say("out of memory");
    return ATM_NO_MEMORY;
  } catch (const std::exception& error) {
    say(error.what());
    return ATM_OTHER;
  } catch (...) {
    say("unknown failure");
    return ATM_OTHER;
  }
}

void require(bool given) {
  if (!given) throw atm::Error(ATM_ARGUMENT, "a null pointer was given");
}

void copy(const std::vector<float>& from, float* to) {
  std::memcpy(to, from.data(), from.size() * sizeof(float));
}

}  // namespace

extern "C" {

const char* atm_version(void) { return ATM_VERSION; }
int atm_abi_version(void) { return ATM_ABI_VERSION; }

atm_status atm_open(const char* folder, const atm_options* options, atm_session** session) {
  return guarded([&] {
    require(session != nullptr);
    *session = nullptr;
    require(folder != nullptr);
    *session = new atm_session(folder, atm::options_of(options));
  });
}

void atm_close(atm_session* session) { delete session; }

size_t atm_classes(const atm_session* session) {
  return session == nullptr ? 0 : session->labels.size();
}

size_t atm_image_bytes(const atm_session* session) {
  return session == nullptr ? 0 : session->session.image_bytes();
}

const char* atm_about(const atm_session* session) {
  return session == nullptr ? "" : session->session.about().c_str();
}

const char* atm_policy(const atm_session* session) {
  return session == nullptr ? "" : session->session.policy().c_str();
}

const char* atm_label(const atm_session* session, size_t index) {
  if (session == nullptr || index >= session->labels.size()) return "";
  return session->labels[index].c_str();
}

atm_status atm_predict_jpeg(const atm_session* session, const uint8_t* data, size_t size,
                            float* logits) {
  return guarded([&] {
    require(session != nullptr && data != nullptr && logits != nullptr);
    const std::string& name = session->ranks();
    copy(session->session.predict_all({atm::decode_jpeg(data, size)}).at(name), logits);
  });
}

atm_status atm_predict_rgb(const atm_session* session, const uint8_t* rgb, size_t width,
                           size_t height, float* logits) {
  return guarded([&] {
    require(session != nullptr && rgb != nullptr && logits != nullptr);
    if (width == 0 || height == 0 || width > atm::kMostPixels / height) {
      throw atm::Error(ATM_IMAGE, "the image has no pixels, or too many");
    }
    const std::string& name = session->ranks();
    const atm::Picture picture{width, height, {rgb, rgb + width * height * atm::kRgb}};
    copy(session->session.predict_all({picture}).at(name), logits);
  });
}

atm_status atm_run(const atm_session* session, const void* image, size_t images, float* logits) {
  return guarded([&] {
    require(session != nullptr && logits != nullptr);
    const std::string& name = session->ranks();
    copy(session->session.run_all(image, images).at(name), logits);
  });
}

atm_status atm_top_k(const atm_session* session, const float* logits, size_t k, size_t* indices,
                     double* probabilities) {
  return guarded([&] {
    require(session != nullptr && indices != nullptr && probabilities != nullptr);
    if (k > session->labels.size()) throw atm::Error(ATM_ARGUMENT, "top_k: beyond the classes");
    for (const atm::Label& label : session->session.top_k(logits, k)) {
      *indices++ = label.index;
      *probabilities++ = label.probability;
    }
  });
}

atm_status atm_check_golden(const atm_session* session) {
  return guarded([&] {
    require(session != nullptr);
    for (const atm::Comparison& found : session->session.check_golden()) {
      if (found.ok()) continue;
      throw atm::Error(ATM_GOLDEN_MISMATCH,
                       found.what + " differ by " + std::to_string(found.difference));
    }
  });
}

size_t atm_output_count(const atm_session* session) {
  return session == nullptr ? 0 : session->outputs.size();
}

const char* atm_output_name(const atm_session* session, size_t index) {
  if (session == nullptr || index >= session->outputs.size()) return "";
  return session->outputs[index].name.c_str();
}

size_t atm_output_axis(const atm_session* session, size_t index, size_t axis) {
  if (session == nullptr || index >= session->outputs.size()) return 0;
  const auto& shape = session->outputs[index].shape;
  return axis < shape.size() ? shape[axis] : 0;
}

size_t atm_output_size(const atm_session* session, size_t index) {
  if (session == nullptr || index >= session->outputs.size()) return 0;
  size_t numbers = 1;
  for (const size_t n : session->outputs[index].shape) numbers *= n;
  return numbers;
}

atm_status atm_run_output(const atm_session* session, const void* image, size_t images,
                          size_t index, float* values) {
  return guarded([&] {
    require(session != nullptr && values != nullptr);
    const std::string& name = session->name(index);
    copy(session->session.run_all(image, images).at(name), values);
  });
}

atm_status atm_predict_jpeg_output(const atm_session* session, const uint8_t* data, size_t size,
                                   size_t index, float* values) {
  return guarded([&] {
    require(session != nullptr && data != nullptr && values != nullptr);
    const std::string& name = session->name(index);
    copy(session->session.predict_all({atm::decode_jpeg(data, size)}).at(name), values);
  });
}

const char* atm_last_error(void) { return last_error; }

}  // extern "C"
