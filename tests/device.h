/* device.h: device memory for tests, which never touch it but by dev_upload and dev_download: the same tests run where
 * it is the host's and where it is not. */
#ifndef CNNSCOPE_TEST_DEVICE_H
#define CNNSCOPE_TEST_DEVICE_H

#include <stdlib.h>
#include <string.h>

#include "kernels.h"

/* Every byte 0xff: floats are NaN. */
static inline void device_spoil(void *device, size_t bytes) {
    void *spoilt = malloc(bytes ? bytes : 1);
    if (!spoilt)
        abort();
    memset(spoilt, 0xff, bytes);
    dev_upload(device, spoilt, bytes);
    free(spoilt);
}

/* New device memory, with these bytes or (NULL) spoilt. */
static inline void *device_new(const void *host, size_t bytes) {
    void *device = dev_alloc(bytes);
    if (host)
        dev_upload(device, host, bytes);
    else
        device_spoil(device, bytes);
    return device;
}

/* The bytes that the lane made, to the host; frees the device's. */
static inline void device_take(Lane *lane, void *host, void *device, size_t bytes) {
    lane_sync(lane);
    dev_download(host, device, bytes);
    dev_free(device);
}

#endif
