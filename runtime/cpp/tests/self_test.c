/* atm_self_test FOLDER: every golden vector of a run, through the C boundary, from plain C. */
#include <stdio.h>

#include "atm_runtime/atm_runtime.h"

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
  if (count != 2) {
    fprintf(stderr, "usage: atm_self_test FOLDER\n");
    return 2;
  }
  status = atm_open(values[1], NULL, &session);
  if (status == ATM_OK) status = atm_check_golden(session);
  if (status != ATM_OK) {
    fprintf(stderr, "atm_self_test: %s\n", atm_last_error());
    atm_close(session);
    return 10 + (int)status;
  }
  if (!boundary_holds(session)) {
    fprintf(stderr, "atm_self_test: the C boundary let a mistake through\n");
    atm_close(session);
    return 1;
  }
  printf("%s: golden vectors hold, %s\n", values[1], atm_about(session));
  atm_close(session);
  return 0;
}
