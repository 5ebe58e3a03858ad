/* atm_abi FOLDER: callers built with older and newer headers, and structs that are none. Each lies
 * in memory of exactly its size: the sanitizers see what is read beyond. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "atm_runtime/atm_runtime.h"

static const char* folder;
static int wrong = 0;

/* `bytes` of options from `given`, beyond which every byte is `fill`; says that they are `size`. */
static atm_status opened(const atm_options* given, size_t bytes, size_t size, unsigned char fill) {
  unsigned char* lent = malloc(bytes);
  atm_session* session = NULL;
  atm_status status;
  if (lent == NULL) return ATM_NO_MEMORY;
  memset(lent, fill, bytes);
  memcpy(lent, given, bytes < sizeof *given ? bytes : sizeof *given);
  memcpy(lent, &size, sizeof size);
  status = atm_open(folder, (const atm_options*)(const void*)lent, &session);
  if ((session != NULL) != (status == ATM_OK)) ++wrong;
  atm_close(session);
  free(lent);
  return status;
}

static void expect(atm_status wanted, atm_status found, const char* what, size_t size) {
  if (wanted == found) return;
  fprintf(stderr, "%s, size %lu: status %d, not %d (%s)\n", what, (unsigned long)size, (int)found,
          (int)wanted, atm_last_error());
  ++wrong;
}

static int in_whole_fields(size_t size) {
  return size == offsetof(atm_options, threads) || size == offsetof(atm_options, cuda) ||
         size == offsetof(atm_options, no_warm_up) || size == offsetof(atm_options, allow_unproven);
}

static void older_callers(void) {
  atm_options plain = ATM_OPTIONS_INIT, refused = ATM_OPTIONS_INIT;
  size_t size;
  refused.threads = 100000;
  for (size = sizeof(size_t); size < sizeof plain; ++size) {
    expect(in_whole_fields(size) ? ATM_OK : ATM_ARGUMENT, opened(&plain, size, size, 0), "older",
           size);
  }
  expect(ATM_ARGUMENT, opened(&refused, offsetof(atm_options, cuda), offsetof(atm_options, cuda), 0),
         "a field within the size counts", offsetof(atm_options, cuda));
  expect(ATM_OK, opened(&refused, sizeof refused, offsetof(atm_options, threads), 0),
         "a field beyond the size does not count", offsetof(atm_options, threads));
}

static void newer_callers(void) {
  const atm_options plain = ATM_OPTIONS_INIT;
  atm_options refused = ATM_OPTIONS_INIT;
  size_t size;
  refused.threads = 100000;
  for (size = sizeof plain; size <= 4096; size += size < 100 ? 1 : 111) {
    expect(ATM_OK, opened(&plain, size, size, 0), "newer, nothing new set", size);
    expect(ATM_ARGUMENT, opened(&refused, size, size, 0), "newer, with an old field", size);
    if (size == sizeof plain) continue;
    expect(ATM_ARGUMENT, opened(&plain, size, size, 1), "newer, with options unknown here", size);
    if (strstr(atm_last_error(), "does not know") == NULL) ++wrong;
  }
}

static void no_structs(void) {
  const atm_options plain = ATM_OPTIONS_INIT;
  const size_t sizes[] = {0, 1, 7, 4097, 1000000, (size_t)-1, (size_t)-8, (size_t)folder};
  size_t i;
  for (i = 0; i < sizeof sizes / sizeof *sizes; ++i) {
    expect(ATM_ARGUMENT, opened(&plain, sizeof plain, sizes[i], 0), "no struct", sizes[i]);
    if (strstr(atm_last_error(), "sizeof(atm_options)") == NULL) ++wrong;
  }
}

int main(int count, char** values) {
  if (count != 2) return 2;
  folder = values[1];
  if (strcmp(atm_version(), ATM_VERSION) != 0 || atm_abi_version() != ATM_ABI_VERSION) ++wrong;
  older_callers();
  newer_callers();
  no_structs();
  printf("%d wrong\n", wrong);
  return wrong == 0 ? 0 : 1;
}
