/* atm_self_test FOLDER [ENGINE]: every golden vector of a run, through the C boundary, from plain C.
 * ENGINE: an engine of it, or a graph in low precision, instead of model.onnx. */
#include <stdio.h>
#include <stdlib.h>

#include "atm_runtime/atm_runtime.h"

/* Every output by its index, of a grey picture; what ranks classes is what atm_run gives. */
static int outputs_hold(const atm_session* session) {
  const size_t count = atm_output_count(session);
  uint8_t* image = calloc(1, atm_image_bytes(session));
  float value, *ranked = malloc((atm_classes(session) + 1) * sizeof *ranked);
  size_t i, k;
  int ranks = 0, holds = image != NULL && ranked != NULL && count > 0;
  if (holds && atm_classes(session) > 0) holds = atm_run(session, image, 1, ranked) == ATM_OK;
  for (i = 0; holds && i < count; ++i) {
    const size_t size = atm_output_size(session, i);
    float* values = malloc(size * sizeof *values);
    holds = values != NULL && size >= atm_output_axis(session, i, 0) &&
            atm_output_name(session, i)[0] != '\0' &&
            atm_run_output(session, image, 1, i, values) == ATM_OK;
    for (k = 0; holds && size == atm_classes(session) && k < size; ++k) {
      ranks += values[k] == ranked[k];
    }
    free(values);
  }
  holds = holds && (size_t)ranks >= atm_classes(session) &&
          atm_run_output(session, image, 1, count, &value) == ATM_ARGUMENT &&
          atm_output_size(session, count) == 0 && atm_output_axis(session, 0, 99) == 0 &&
          atm_output_name(session, count)[0] == '\0' && atm_output_count(NULL) == 0;
  free(image);
  free(ranked);
  return holds;
}

/* Where no class is ranked, what ranks them says so. */
static int declines(const atm_session* session) {
  const uint8_t junk[4] = {0};
  float value = 0;
  size_t index;
  double probability;
  return atm_predict_jpeg(session, junk, 4, &value) == ATM_ARGUMENT &&
         atm_predict_rgb(session, junk, 1, 1, &value) == ATM_ARGUMENT &&
         atm_run(session, junk, 1, &value) == ATM_ARGUMENT &&
         atm_top_k(session, &value, 1, &index, &probability) == ATM_ARGUMENT &&
         atm_predict_jpeg_output(session, junk, 4, 0, &value) == ATM_IMAGE;
}

static int boundary_holds(const atm_session* session) {
  float logit;
  size_t index;
  double probability;
  const uint8_t junk[4] = {0xff, 0xd8, 0xff, 0x00};
  static const uint8_t thin[16000 * 3];
  atm_options options = ATM_OPTIONS_INIT;
  atm_session* none = (atm_session*)&logit;
  options.threads = 100000;
  return atm_open("/nowhere", NULL, &none) == ATM_NOT_A_RUN && none == NULL &&
         atm_last_error()[0] != '\0' && atm_open(NULL, NULL, &none) == ATM_ARGUMENT &&
         atm_open("/nowhere", NULL, NULL) == ATM_ARGUMENT &&
         atm_predict_jpeg(session, junk, 4, &logit) == ATM_IMAGE &&
         atm_predict_jpeg(session, NULL, 4, &logit) == ATM_ARGUMENT &&
         atm_predict_rgb(session, junk, 0, 7, &logit) == ATM_IMAGE &&
         atm_predict_rgb(session, junk, (size_t)-1, (size_t)-1, &logit) == ATM_IMAGE &&
         atm_predict_rgb(session, thin, 16000, 1, &logit) == ATM_IMAGE &&
         atm_predict_rgb(session, thin, 1, 16000, &logit) == ATM_IMAGE &&
         atm_open("/nowhere", &options, &none) == ATM_ARGUMENT &&
         atm_run(session, NULL, 1, &logit) == ATM_ARGUMENT &&
         atm_run(session, junk, 0, &logit) == ATM_ARGUMENT &&
         atm_top_k(session, NULL, 1, &index, &probability) == ATM_ARGUMENT &&
         atm_top_k(NULL, &logit, 1, &index, &probability) == ATM_ARGUMENT &&
         atm_check_golden(NULL) == ATM_ARGUMENT && atm_classes(NULL) == 0 &&
         atm_label(session, (size_t)-1)[0] == '\0';
}

int main(int count, char** values) {
  atm_session* session = NULL;
  atm_status status;
  atm_options options = ATM_OPTIONS_INIT;
  if (count != 2 && count != 3) {
    fprintf(stderr, "usage: atm_self_test FOLDER [ENGINE]\n");
    return 2;
  }
  if (count == 3) options.engine = values[2];
  status = atm_open(values[1], &options, &session);
  if (status == ATM_OK) status = atm_check_golden(session);
  if (status != ATM_OK) {
    fprintf(stderr, "atm_self_test: %s\n", atm_last_error());
    atm_close(session);
    return 10 + (int)status;
  }
  if (!(atm_classes(session) > 0 ? boundary_holds(session) : declines(session)) ||
      !outputs_hold(session)) {
    fprintf(stderr, "atm_self_test: the C boundary let a mistake through\n");
    atm_close(session);
    return 1;
  }
  printf("%s: golden vectors hold, %s\n", values[1], atm_about(session));
  atm_close(session);
  return 0;
}
