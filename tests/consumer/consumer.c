/* consumer FOLDER IMAGE.jpg: the logits as raw float32, through the C boundary. */
#include <atm_runtime/atm_runtime.h>
#include <stdio.h>
#include <stdlib.h>

static int failed(void) {
  fprintf(stderr, "consumer: %s\n", atm_last_error());
  return 1;
}

/* The file's bytes, or NULL. */
static uint8_t* read_file(const char* path, size_t* size) {
  const size_t most = 1 << 24;
  FILE* file = fopen(path, "rb");
  uint8_t* data = malloc(most);
  if (file == NULL || data == NULL) return NULL;
  *size = fread(data, 1, most, file);
  fclose(file);
  return data;
}

int main(int count, char** values) {
  atm_options options = ATM_OPTIONS_INIT;
  atm_session* session = NULL;
  size_t size = 0;
  uint8_t* data = count == 3 ? read_file(values[2], &size) : NULL;
  float* logits;
  if (data == NULL || atm_abi_version() != ATM_ABI_VERSION) return 2;
  options.threads = 1;
  if (atm_open(values[1], &options, &session) != ATM_OK) return failed();
  logits = malloc(atm_classes(session) * sizeof *logits);
  if (logits == NULL || atm_predict_jpeg(session, data, size, logits) != ATM_OK) return failed();
  fwrite(logits, sizeof *logits, atm_classes(session), stdout);
  free(logits);
  free(data);
  atm_close(session);
  return 0;
}
