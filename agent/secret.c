/* SPDX-License-Identifier: Apache-2.0 */
/* Memory for secrets. */
#include "secret.h"
#include <openssl/crypto.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

static size_t whole_pages(size_t len)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);

    return (len + page - 1) / page * page;
}

void *kh_secret_alloc(size_t len, bool *locked)
{
    size_t size = whole_pages(len == 0 ? 1 : len);
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED) {
        return NULL;
    }
    madvise(memory, size, MADV_DONTDUMP);
    madvise(memory, size, MADV_WIPEONFORK);
    if (mlock(memory, size) != 0 && locked != NULL) {
        *locked = false;
    }
    return memory;
}

void kh_secret_free(void *secret, size_t len)
{
    size_t size = whole_pages(len == 0 ? 1 : len);

    if (secret != NULL) {
        OPENSSL_cleanse(secret, size);
        munmap(secret, size);
    }
}

void kh_secret_process(void)
{
    const struct rlimit none = {0, 0};

    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    setrlimit(RLIMIT_CORE, &none);
}
