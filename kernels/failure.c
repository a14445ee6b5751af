/* failure.c: see failure.h. */
#include "failure.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels.h"

static void (*failure)(const char *message);

void dev_on_failure(void (*fail)(const char *message)) {
    failure = fail;
}

void kernel_fail(const char *format, ...) {
    char message[512];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    if (failure)
        failure(message);
    fprintf(stderr, "cnnscope: %s\n", message);
    exit(1);
}
