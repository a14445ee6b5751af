/* sha256.h: the hash that says which model and which images a result came from; FIPS 180-4, by libcrypto. */
#ifndef CNNSCOPE_SHA256_H
#define CNNSCOPE_SHA256_H

#include <stddef.h>

/* hex: 64 lower-case digits and the final zero. */
void sha256_hex(char hex[65], const void *bytes, size_t size);

/* The same piece by piece, for files that are not held in memory. sha256_end frees what sha256_begin made; one that
 * is never ended (a die() between) is leaked, which an ending run can afford. */
typedef struct Sha256 Sha256;
Sha256 *sha256_begin(void);
void sha256_add(Sha256 *hash, const void *bytes, size_t size);
void sha256_end(Sha256 *hash, char hex[65]);

#endif
