/* sha256.c: a thin cover over libcrypto's EVP, which uses the processor's SHA instructions where there are some
 * (1-2 GB/s; a loop of our own would be a tenth of that). Struct Sha256 is libcrypto's context under our name, so that
 * no other file includes its headers. */
#include "sha256.h"

#include <openssl/evp.h>

#include "error.h"
#include "watchdog.h"

static void must(int succeeded) {
    if (succeeded != 1)
        die("SHA-256 failed in libcrypto: expected a working OpenSSL 3, check its installation (FIPS settings?)");
}

Sha256 *sha256_begin(void) {
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    must(context != NULL);
    must(EVP_DigestInit_ex(context, EVP_sha256(), NULL));
    return (Sha256 *)context;
}

void sha256_add(Sha256 *hash, const void *bytes, size_t size) {
    must(EVP_DigestUpdate((EVP_MD_CTX *)hash, bytes, size));
    watchdog_tick(); /* files of hundreds of GB take minutes */
}

void sha256_end(Sha256 *hash, char hex[65]) {
    static const char digits[] = "0123456789abcdef";
    unsigned char digest[EVP_MAX_MD_SIZE] = {0};
    must(EVP_DigestFinal_ex((EVP_MD_CTX *)hash, digest, NULL));
    EVP_MD_CTX_free((EVP_MD_CTX *)hash);
    for (int i = 0; i < 32; i++) {
        hex[2 * i] = digits[digest[i] >> 4];
        hex[2 * i + 1] = digits[digest[i] & 15];
    }
    hex[64] = 0;
}

void sha256_hex(char hex[65], const void *bytes, size_t size) {
    Sha256 *hash = sha256_begin();
    sha256_add(hash, bytes, size);
    sha256_end(hash, hex);
}
