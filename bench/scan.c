/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `keyhold-bench scan`: looks for the bytes of a private key in the memory of processes and in files.
 *
 * Each secret number of the key (d, p, q, the CRT values, an Ed25519 seed and what is derived from it) and the base64 body of
 * its PEM form is cut into pieces of 16 bytes, forwards as in DER and backwards as OpenSSL's little-endian limbs lie in
 * memory; any piece that is found anywhere counts, so a torn or truncated copy is found as well.
 */
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PIECE 16
#define PIECES_MAX 16384
#define CHUNK (1u << 20)
#define FILTER_BITS 16
#define FINDINGS_MAX 100

static const char *const usage =
    "usage: keyhold-bench scan --key FILE [--key FILE…] [--pid PID[,PID…]] [FILE…] [--json]\n"
    "Looks for any 16 bytes of the private keys (PEM) in the memory of the processes and in the files.\n"
    "Exit status: 0 none found, 1 found, 2 something could not be read (a process that has ended, a protected one).\n";

typedef struct piece {
    uint8_t bytes[PIECE];
    const char *what;
} piece;

typedef struct scanner {
    piece *pieces;
    size_t count;
    uint8_t filter[1u << FILTER_BITS]; /* of the first four bytes of each piece */
    uint16_t *chains;                  /* piece + 1 by filter value, next piece in next[] */
    uint16_t *next;
    uint8_t secret[8192];              /* all secret numbers of the key that is being added, one after the other */
    size_t secret_len;
    json_t *findings;
    uint64_t found, scanned_bytes;
    unsigned unreadable;
} scanner;

static unsigned filter_index(const uint8_t *bytes)
{
    uint32_t word;

    memcpy(&word, bytes, sizeof(word));
    return (word * 2654435761u) >> (32 - FILTER_BITS);
}

/* ---- The pieces ------------------------------------------------------------------------------------------------------ */

static void add_piece(scanner *s, const uint8_t *bytes, const char *what)
{
    unsigned slot = filter_index(bytes);
    size_t i;
    bool dull = true;

    for (i = 1; i < PIECE; i++) {
        dull = dull && bytes[i] == bytes[0];
    }
    if (dull || s->count == PIECES_MAX) {
        return;
    }
    memcpy(s->pieces[s->count].bytes, bytes, PIECE);
    s->pieces[s->count].what = what;
    s->next[s->count] = s->chains[slot];
    s->count++;
    s->chains[slot] = (uint16_t)s->count;
    s->filter[slot] = 1;
}

static void add_value(scanner *s, const uint8_t *bytes, size_t len, const char *what)
{
    uint8_t backwards[PIECE];
    size_t at;
    size_t i;

    for (at = 0; at + PIECE <= len; at += PIECE) {
        add_piece(s, bytes + at, what);
        for (i = 0; i < PIECE; i++) {
            backwards[i] = bytes[at + PIECE - 1 - i];
        }
        add_piece(s, backwards, what);
    }
    if (s->secret_len + len <= sizeof(s->secret)) {
        memcpy(s->secret + s->secret_len, bytes, len);
        s->secret_len += len;
    }
    OPENSSL_cleanse(backwards, sizeof(backwards));
}

static void add_numbers(scanner *s, const EVP_PKEY *key)
{
    static const struct {
        const char *param, *what;
    } numbers[] = {{OSSL_PKEY_PARAM_RSA_D, "d"},           {OSSL_PKEY_PARAM_RSA_FACTOR1, "p"},
                   {OSSL_PKEY_PARAM_RSA_FACTOR2, "q"},     {OSSL_PKEY_PARAM_RSA_EXPONENT1, "dp"},
                   {OSSL_PKEY_PARAM_RSA_EXPONENT2, "dq"},  {OSSL_PKEY_PARAM_RSA_COEFFICIENT1, "qinv"},
                   {OSSL_PKEY_PARAM_PRIV_KEY, "private"}};
    uint8_t bytes[1024];
    size_t i;

    for (i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        BIGNUM *number = NULL;

        if (EVP_PKEY_get_bn_param(key, numbers[i].param, &number) == 1 && BN_num_bytes(number) <= (int)sizeof(bytes)) {
            add_value(s, bytes, (size_t)BN_bn2bin(number, bytes), numbers[i].what);
        }
        BN_clear_free(number);
    }
    OPENSSL_cleanse(bytes, sizeof(bytes));
}

/* Ed25519: the seed, and the two halves of its hash: the scalar (clamped in its first and last byte) and the prefix. */
static void add_seed(scanner *s, const EVP_PKEY *key)
{
    uint8_t seed[64];
    uint8_t hash[SHA512_DIGEST_LENGTH];
    size_t len = sizeof(seed);

    if (EVP_PKEY_get_raw_private_key(key, seed, &len) == 1 && len == 32) {
        add_value(s, seed, len, "seed");
        SHA512(seed, len, hash);
        add_value(s, hash, sizeof(hash), "expanded seed");
        hash[0] &= 248;
        hash[31] = (uint8_t)((hash[31] & 127) | 64);
        add_value(s, hash, 32, "scalar");
    }
    OPENSSL_cleanse(seed, sizeof(seed));
    OPENSSL_cleanse(hash, sizeof(hash));
}

/*
 * The PEM form of the secret parts. A line is 48 bytes of DER, so 12 bytes that begin at a multiple of 12 are 16 characters
 * that stand together. Units of the public part are left out: a certificate may spell them alike.
 */
static void add_text(scanner *s, const uint8_t *der, size_t len)
{
    uint8_t text[PIECE + 1];
    size_t at;

    for (at = 0; at + 12 <= len; at += 12) {
        if (memmem(s->secret, s->secret_len, der + at, 12) != NULL) {
            EVP_EncodeBlock(text, der + at, 12);
            add_piece(s, text, "PEM text");
        }
    }
    OPENSSL_cleanse(text, sizeof(text));
}

static bool add_key(scanner *s, const char *path)
{
    const unsigned char *at = NULL;
    unsigned char *der = NULL;
    char *name = NULL;
    char *header = NULL;
    long len = 0;
    EVP_PKEY *key = NULL;
    FILE *file = fopen(path, "r");

    s->secret_len = 0;
    if (file != NULL && PEM_read(file, &name, &header, &der, &len) == 1) {
        at = der;
        key = d2i_AutoPrivateKey(NULL, &at, len);
    }
    if (file != NULL) {
        fclose(file);
    }
    if (key == NULL) {
        fprintf(stderr, "keyhold-bench scan: %s is not a private key in PEM form without a passphrase\n", path);
    } else {
        add_numbers(s, key);
        add_seed(s, key);
        add_text(s, der, (size_t)len);
    }
    OPENSSL_free(name);
    OPENSSL_free(header);
    OPENSSL_clear_free(der, (size_t)len);
    OPENSSL_cleanse(s->secret, sizeof(s->secret));
    EVP_PKEY_free(key);
    return key != NULL;
}

/* ---- Looking --------------------------------------------------------------------------------------------------------- */

/* One line for each place and kind of secret: where it was first, and how often. */
static void found(scanner *s, const char *where, uint64_t at, const char *what)
{
    json_t *last = json_array_get(s->findings, json_array_size(s->findings) - 1);

    s->found++;
    if (last != NULL && strcmp(json_string_value(json_object_get(last, "where")), where) == 0 &&
        strcmp(json_string_value(json_object_get(last, "what")), what) == 0) {
        json_object_set_new(last, "pieces",
                            json_integer(json_integer_value(json_object_get(last, "pieces")) + 1));
    } else if (json_array_size(s->findings) < FINDINGS_MAX) {
        json_array_append_new(s->findings, json_pack("{s:s, s:I, s:s, s:i}", "where", where, "at", (json_int_t)at,
                                                     "what", what, "pieces", 1));
    }
}

/* All pieces that begin in the first `starts` bytes of data; PIECE - 1 more bytes lie behind them. */
static void scan_bytes(scanner *s, const uint8_t *data, size_t starts, const char *where, uint64_t at)
{
    size_t i;
    unsigned slot;
    unsigned n;

    for (i = 0; i < starts; i++) {
        slot = filter_index(data + i);
        if (s->filter[slot] == 0) {
            continue;
        }
        for (n = s->chains[slot]; n != 0; n = s->next[n - 1]) {
            if (memcmp(data + i, s->pieces[n - 1].bytes, PIECE) == 0) {
                found(s, where, at + i, s->pieces[n - 1].what);
            }
        }
    }
    s->scanned_bytes += starts;
}

/* Reads [at, end) of a file in chunks that overlap by a piece. False: not all of it could be read. */
static bool scan_range(scanner *s, int fd, uint64_t at, uint64_t end, const char *where)
{
    static uint8_t buffer[CHUNK + PIECE];
    size_t kept = 0;
    size_t want;
    ssize_t got;

    while (at < end) {
        want = end - at < CHUNK ? (size_t)(end - at) : CHUNK;
        got = pread(fd, buffer + kept, want, (off_t)at);
        if (got <= 0) {
            OPENSSL_cleanse(buffer, sizeof(buffer));
            return got == 0;
        }
        if (kept + (size_t)got >= PIECE) {
            scan_bytes(s, buffer, kept + (size_t)got - PIECE + 1, where, at - kept);
            memmove(buffer, buffer + kept + (size_t)got - PIECE + 1, PIECE - 1);
            kept = PIECE - 1;
        } else {
            kept += (size_t)got;
        }
        at += (uint64_t)got;
    }
    OPENSSL_cleanse(buffer, sizeof(buffer));
    return true;
}

/* Mappings that hold no memory of the process's own, or cannot be read by anybody. */
static bool skip_mapping(const char *perms, const char *name)
{
    return strncmp(perms, "---", 3) == 0 || strcmp(name, "[vvar]") == 0 || strcmp(name, "[vsyscall]") == 0 ||
           strncmp(name, "/dev/", 5) == 0;
}

static void scan_process(scanner *s, pid_t pid)
{
    char path[64];
    char line[4096];
    char where[4096];
    char perms[8];
    unsigned long long from;
    unsigned long long to;
    unsigned regions = 0;
    int name_at;
    int memory;
    FILE *maps;

    snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
    maps = fopen(path, "r");
    snprintf(path, sizeof(path), "/proc/%d/mem", (int)pid);
    memory = open(path, O_RDONLY | O_CLOEXEC);
    while (maps != NULL && memory >= 0 && fgets(line, sizeof(line), maps) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        name_at = 0;
        if (sscanf(line, "%llx-%llx %7s %*s %*s %*s %n", &from, &to, perms, &name_at) < 3 ||
            skip_mapping(perms, name_at > 0 ? line + name_at : "")) {
            continue;
        }
        snprintf(where, sizeof(where), "pid %d %.200s", (int)pid, name_at > 0 ? line + name_at : "");
        if (scan_range(s, memory, from, to, where)) {
            regions++;
        } else if (perms[0] == 'r' && errno != EIO) {
            fprintf(stderr, "keyhold-bench scan: %s: %s\n", where, strerror(errno));
            s->unreadable++;
        }
    }
    if (regions == 0) {
        fprintf(stderr, "keyhold-bench scan: the memory of process %d cannot be read\n", (int)pid);
        s->unreadable++;
    }
    if (memory >= 0) {
        close(memory);
    }
    if (maps != NULL) {
        fclose(maps);
    }
}

static void scan_file(scanner *s, const char *path)
{
    struct stat status;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0 || fstat(fd, &status) != 0 || !S_ISREG(status.st_mode) ||
        !scan_range(s, fd, 0, (uint64_t)status.st_size, path)) {
        fprintf(stderr, "keyhold-bench scan: %s cannot be read\n", path);
        s->unreadable++;
    }
    if (fd >= 0) {
        close(fd);
    }
}

/* ---- The command ------------------------------------------------------------------------------------------------------ */

static void print_result(const scanner *s, bool as_json)
{
    json_t *json;
    size_t i;

    if (as_json) {
        json = json_pack("{s:I, s:I, s:I, s:i, s:O}", "pieces", (json_int_t)s->count, "found", (json_int_t)s->found,
                         "bytes", (json_int_t)s->scanned_bytes, "unreadable", (int)s->unreadable, "findings",
                         s->findings);
        json_dumpf(json, stdout, JSON_INDENT(2));
        putchar('\n');
        json_decref(json);
        return;
    }
    printf("%zu pieces looked for in %.1f MB: %llu found\n", s->count, (double)s->scanned_bytes / 1e6,
           (unsigned long long)s->found);
    for (i = 0; i < json_array_size(s->findings); i++) {
        json_t *one = json_array_get(s->findings, i);

        printf("  %s: %lld pieces of %s from 0x%llx\n", json_string_value(json_object_get(one, "where")),
               (long long)json_integer_value(json_object_get(one, "pieces")),
               json_string_value(json_object_get(one, "what")),
               (unsigned long long)json_integer_value(json_object_get(one, "at")));
    }
}

int kh_bench_scan(int argc, char **argv)
{
    static const struct option options[] = {{"key", required_argument, NULL, 'k'}, {"pid", required_argument, NULL, 'p'},
                                            {"json", no_argument, NULL, 'j'},      {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    static scanner s;
    kh_pids pids = {0};
    bool as_json = false;
    int status = KH_EXIT_USAGE;
    int option;
    size_t i;

    s.pieces = calloc(PIECES_MAX, sizeof(*s.pieces));
    s.chains = calloc(1u << FILTER_BITS, sizeof(*s.chains));
    s.next = calloc(PIECES_MAX, sizeof(*s.next));
    s.findings = json_array();
    if (s.pieces == NULL || s.chains == NULL || s.next == NULL || s.findings == NULL) {
        goto done;
    }
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == 'h') {
            fputs(usage, stdout);
            status = KH_EXIT_OK;
            goto done;
        }
        if (option == 'j') {
            as_json = true;
        } else if (option == '?' || (option == 'k' && !add_key(&s, optarg)) ||
                   (option == 'p' && !kh_pids_parse(&pids, optarg))) {
            goto done;
        }
    }
    if (s.count == 0 || (pids.count == 0 && optind == argc)) {
        fputs(usage, stderr);
        goto done;
    }
    for (i = 0; i < pids.count; i++) {
        scan_process(&s, pids.pid[i]);
    }
    for (; optind < argc; optind++) {
        scan_file(&s, argv[optind]);
    }
    print_result(&s, as_json);
    status = s.found > 0 ? KH_EXIT_FAILED : s.unreadable > 0 ? KH_EXIT_USAGE : KH_EXIT_OK;
done:
    if (s.pieces != NULL) {
        OPENSSL_cleanse(s.pieces, PIECES_MAX * sizeof(*s.pieces));
    }
    free(s.pieces);
    free(s.chains);
    free(s.next);
    json_decref(s.findings);
    return status;
}
