/* The C boundary of the runtime: no exception crosses it, every function says how it ended.
 * A session may be shared between threads; atm_last_error() is each thread's own.
 *
 * What the ABI promises: a program built against this header runs with every later library of the
 * same ATM_ABI_VERSION (libatm_runtime.so.<ATM_ABI_VERSION>) without being built again. Functions,
 * their arguments and the numbers of atm_status stay; new ones are added behind the old.
 * atm_options grows at its end alone and says its own size, so that old and new callers are both
 * understood; 0 and NULL keep meaning the default. The C++ API (atm_runtime.hpp) passes types of the
 * standard library: build it again, with the same compiler, for every ATM_VERSION. */
#ifndef ATM_RUNTIME_H
#define ATM_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define ATM_API __declspec(dllexport)
#define ATM_LOCAL
#else
#define ATM_API __attribute__((visibility("default")))
#define ATM_LOCAL __attribute__((visibility("hidden")))
#endif

#define ATM_VERSION "0.1.0" /* of the header; atm_version() is the library's */
#define ATM_ABI_VERSION 1

#ifdef __cplusplus
extern "C" {
#endif

typedef enum atm_status {
  ATM_OK = 0,
  ATM_NOT_A_RUN = 1,        /* no manifest there */
  ATM_MANIFEST = 2,         /* the manifest is damaged or was changed */
  ATM_RUN_FORMAT = 3,       /* written by another format version */
  ATM_MISSING_FILE = 4,     /* a file of the manifest is missing */
  ATM_CHANGED_FILE = 5,     /* a file's bytes are not those of the export */
  ATM_UNPROVEN = 6,         /* parity with PyTorch was not proven */
  ATM_ENGINE_MISMATCH = 7,  /* an engine for another GPU, flavor or graph */
  ATM_ENGINE_VERSION = 8,   /* an engine of another TensorRT version */
  ATM_GOLDEN_MISMATCH = 9,  /* this machine does not give the numbers of the export */
  ATM_IMAGE = 10,           /* an image that cannot be read */
  ATM_ARGUMENT = 11,        /* an argument that cannot be meant */
  ATM_BACKEND = 12,         /* ONNX Runtime or TensorRT failed */
  ATM_NO_MEMORY = 13,
  ATM_OTHER = 14,
  ATM_NOT_FINITE = 15       /* an answer that holds NaN or infinity */
} atm_status;

typedef struct atm_session atm_session;

/* Start from ATM_OPTIONS_INIT. `size` is what the caller knows of this struct, in bytes: fields
 * beyond it take their defaults. A larger struct, of a later header, is taken while what this
 * library does not know of it is 0: an option is never ignored. */
typedef struct atm_options {
  size_t size;        /* sizeof(atm_options) */
  const char* engine; /* NULL: model.onnx in ONNX Runtime; else an engine of the folder by name, or
                         a graph of it in low precision, such as model.int8.onnxruntime.onnx */
  int threads;        /* 0: all cores; 256 at most */
  int cuda;           /* 1: ONNX Runtime's CUDA provider */
  int no_warm_up;
  int allow_unproven;
} atm_options;

#define ATM_OPTIONS_INIT {sizeof(atm_options), NULL, 0, 0, 0, 0}

/* ATM_VERSION and ATM_ABI_VERSION of the library that runs. */
ATM_API const char* atm_version(void);
ATM_API int atm_abi_version(void);

/* options may be NULL: all defaults. *session is NULL unless ATM_OK is returned; ATM_ARGUMENT for
 * options whose size is none of any version. */
ATM_API atm_status atm_open(const char* folder, const atm_options* options, atm_session** session);
ATM_API void atm_close(atm_session* session);

/* How many classes are ranked; 0 where the task ranks none, and atm_predict_*, atm_run and atm_top_k
 * answer ATM_ARGUMENT: take atm_run_output. */
ATM_API size_t atm_classes(const atm_session* session);
ATM_API size_t atm_image_bytes(const atm_session* session);
ATM_API const char* atm_about(const atm_session* session);
ATM_API const char* atm_policy(const atm_session* session);
/* Name of a class, or "" beyond the last; valid while the session is. */
ATM_API const char* atm_label(const atm_session* session, size_t index);

/* logits: room for atm_classes() floats. */
ATM_API atm_status atm_predict_jpeg(const atm_session* session, const uint8_t* data, size_t size,
                                    float* logits);
ATM_API atm_status atm_predict_rgb(const atm_session* session, const uint8_t* rgb, size_t width,
                                   size_t height, float* logits);
/* image: `images` prepared images of atm_image_bytes() each; logits: images * atm_classes(). */
ATM_API atm_status atm_run(const atm_session* session, const void* image, size_t images,
                           float* logits);
/* indices and probabilities: room for k; k at most atm_classes(). */
ATM_API atm_status atm_top_k(const atm_session* session, const float* logits, size_t k,
                             size_t* indices, double* probabilities);
/* ATM_OK only if every golden vector holds. */
ATM_API atm_status atm_check_golden(const atm_session* session);

/* What is answered, by index, the main output first: float32 [images, axis 0, axis 1, ...]. Beyond the
 * last: "", and 0. */
ATM_API size_t atm_output_count(const atm_session* session);
ATM_API const char* atm_output_name(const atm_session* session, size_t index);
ATM_API size_t atm_output_axis(const atm_session* session, size_t index, size_t axis);
/* Numbers an image. */
ATM_API size_t atm_output_size(const atm_session* session, size_t index);
/* values: room for images * atm_output_size(). */
ATM_API atm_status atm_run_output(const atm_session* session, const void* image, size_t images,
                                  size_t index, float* values);
ATM_API atm_status atm_predict_jpeg_output(const atm_session* session, const uint8_t* data,
                                           size_t size, size_t index, float* values);

/* What went wrong in this thread's last call, in words. */
ATM_API const char* atm_last_error(void);

#ifdef __cplusplus
}
#endif
#endif
