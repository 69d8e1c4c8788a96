/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a fuzz target over every file of its corpus, so that each ordinary test run replays it. No corpus is an error. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static int replay_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    uint8_t *data = NULL;
    long len = 0;
    int status = -1;

    if (file == NULL || fseek(file, 0, SEEK_END) != 0 || (len = ftell(file)) < 0 || fseek(file, 0, SEEK_SET) != 0) {
        goto done;
    }
    /* An exact allocation, so that a sanitizer sees the first byte that is read past the end. */
    data = malloc(len > 0 ? (size_t)len : 1);
    if (data == NULL || fread(data, 1, (size_t)len, file) != (size_t)len) {
        goto done;
    }
    LLVMFuzzerTestOneInput(data, (size_t)len);
    status = 0;
done:
    if (status != 0) {
        perror(path);
    }
    free(data);
    if (file != NULL) {
        fclose(file);
    }
    return status;
}

int main(int argc, char **argv)
{
    unsigned count = 0;
    struct dirent *entry;
    DIR *dir;
    char path[4096];

    if (argc != 2 || (dir = opendir(argv[1])) == NULL) {
        fprintf(stderr, "usage: %s CORPUS-DIRECTORY\n", argv[0]);
        return 2;
    }
    while ((entry = readdir(dir)) != NULL) {
        if (entry->d_name[0] == '.') {
            continue;
        }
        snprintf(path, sizeof(path), "%s/%s", argv[1], entry->d_name);
        if (replay_file(path) != 0) {
            closedir(dir);
            return 1;
        }
        count++;
    }
    closedir(dir);
    if (count == 0) {
        fprintf(stderr, "%s: the corpus is empty\n", argv[1]);
        return 1;
    }
    printf("%s: %u inputs replayed\n", argv[1], count);
    return 0;
}
