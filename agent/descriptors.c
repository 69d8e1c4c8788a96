/* SPDX-License-Identifier: Apache-2.0 */
/* See descriptors.h. */
#include "descriptors.h"

#include <fcntl.h>
#include <unistd.h>

void kh_descriptors_standard(void)
{
    int fd = 0;

    do {
        fd = open("/dev/null", O_RDWR);
    } while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0) {
        close(fd);
    }
}
