/* failure.h: how the kernels of either build end the run. */
#ifndef CNNSCOPE_FAILURE_H
#define CNNSCOPE_FAILURE_H

#ifdef __cplusplus
extern "C" {
#endif

/* Ends the run with one line, through the function given to dev_on_failure; kernels.h. */
void kernel_fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

#ifdef __cplusplus
}
#endif

#endif
